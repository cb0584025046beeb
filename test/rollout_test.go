package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestBootedRollout runs each way of docs/rollout.md on a host of k3s of its own: the
// loop over ssh, the playbook, and what cloud-init runs at the first boot. Afterwards
// the hosts are one cluster.
func TestBootedRollout(t *testing.T) {
	needSystemd(t)
	page, err := os.ReadFile("../docs/rollout.md")
	if err != nil {
		t.Fatal(err)
	}
	deb := builtPackages(t, "../bin/packages", "amd64", "x86_64").deb
	n := newNetwork(t, "")
	machines := []*machine{n.addMachine(), n.addMachine(), n.addMachine()}
	for _, m := range machines {
		m.boot()
	}
	for _, m := range machines {
		m.awaitBoot()
		m.installK3s()
	}
	loop, ansible, cloud := machines[0], machines[1], machines[2]
	rolloutLoop(t, codeBlock(t, string(page), "sh"), deb, loop)
	ansible.rolloutAnsible(codeBlock(t, string(page), "yaml"), deb)
	cloud.rolloutCloudInit(page, deb)
	for _, m := range machines {
		m.is("enabled", "active")
	}
	loop.awaitMembers(len(machines))
}

// codeBlock is the first block of a language on a page.
func codeBlock(t *testing.T, page, language string) string {
	t.Helper()
	block := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$").FindStringSubmatch(page)
	if block == nil {
		t.Fatalf("the page has no block of %s", language)
	}
	return block[1]
}

// rolloutLoop runs the loop on this machine. kubectl, ssh and scp are scripts that
// reach the host by its namespaces, since no host of the tests has a network out.
func rolloutLoop(t *testing.T, script, deb string, m *machine) {
	t.Helper()
	dir := t.TempDir()
	enter := fmt.Sprintf("nsenter -t %d -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin", m.pid)
	for name, text := range map[string]string{
		"kubectl": "echo " + m.address,
		"ssh":     fmt.Sprintf(`[ "$1 $2" = "-n root@%s" ] && exec %s sh -c "$3" </dev/null`, m.address, enter),
		"scp":     fmt.Sprintf(`[ "$1 $3" = "-q root@%s:/tmp/seeder.deb" ] && exec %s sh -c 'cat > /tmp/seeder.deb' < "$2"`, m.address, enter),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, exec.CommandContext(t.Context(), "cp", deb, filepath.Join(dir, "seeder.deb")))
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	if out := run(t, cmd); strings.Contains(out, "failed:") {
		t.Errorf("the loop of docs/rollout.md:\n%s", out)
	}
}

// rolloutAnsible runs the playbook on the host itself, twice: the second run changes
// nothing.
func (m *machine) rolloutAnsible(playbook, deb string) {
	m.t.Helper()
	m.give(deb, "/root/seeder.deb")
	m.write("/root/seeder.yaml", playbook, 0o644)
	const command = "ansible-playbook -i localhost, -c local seeder.yaml"
	m.op(command)
	if out := m.op(command); !strings.Contains(out, "changed=0") {
		m.t.Errorf("the second run of the playbook changes something:\n%s", out)
	}
}

// rolloutCloudInit runs what cloud-init would run at the first boot.
func (m *machine) rolloutCloudInit(page []byte, deb string) {
	m.t.Helper()
	_, section, _ := strings.Cut(string(page), "\n## cloud-init\n")
	var config struct{ Runcmd [][]string }
	if err := yaml.Unmarshal([]byte(codeBlock(m.t, section, "yaml")), &config); err != nil || len(config.Runcmd) == 0 {
		m.t.Fatalf("the user data of docs/rollout.md: %v, %d commands", err, len(config.Runcmd))
	}
	m.give(deb, "/srv/seeder.deb")
	for _, words := range config.Runcmd {
		for i, w := range words {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		m.op(strings.Join(words, " "))
	}
}

// give copies a file to the machine.
func (m *machine) give(file, to string) {
	m.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(to, string(b), 0o644)
}
