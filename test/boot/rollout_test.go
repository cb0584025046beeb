package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"seeder/test/harness"
)

// TestBootedRollout runs each way of docs/rollout.md on a host of k3s of its own: the
// loop over ssh, the playbook, and what cloud-init runs at the first boot. Afterwards
// the hosts are one cluster.
func TestBootedRollout(t *testing.T) {
	harness.NeedSystemd(t)
	page, err := os.ReadFile("../../docs/rollout.md")
	if err != nil {
		t.Fatal(err)
	}
	deb := builtPackages(t, "../../bin/packages", "amd64", "x86_64").deb
	n := harness.NewNetwork(t, "")
	machines := []*harness.Machine{n.AddMachine(), n.AddMachine(), n.AddMachine()}
	for _, m := range machines {
		m.Boot()
	}
	for _, m := range machines {
		m.AwaitBoot()
		m.InstallK3s()
	}
	loop, ansible, cloud := machines[0], machines[1], machines[2]
	rolloutLoop(t, codeBlock(t, string(page), "sh"), deb, loop)
	rolloutAnsible(ansible, codeBlock(t, string(page), "yaml"), deb)
	rolloutCloudInit(cloud, page, deb)
	for _, m := range machines {
		m.Is("enabled", "active")
	}
	loop.AwaitMembers(len(machines))
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
func rolloutLoop(t *testing.T, script, deb string, m *harness.Machine) {
	t.Helper()
	dir := t.TempDir()
	enter := fmt.Sprintf("nsenter -t %d -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin", m.PID)
	for name, text := range map[string]string{
		"kubectl": "echo " + m.Address,
		"ssh":     fmt.Sprintf(`[ "$1 $2" = "-n root@%s" ] && exec %s sh -c "$3" </dev/null`, m.Address, enter),
		"scp":     fmt.Sprintf(`[ "$1 $3" = "-q root@%s:/tmp/seeder.deb" ] && exec %s sh -c 'cat > /tmp/seeder.deb' < "$2"`, m.Address, enter),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	harness.Run(t, exec.CommandContext(t.Context(), "cp", deb, filepath.Join(dir, "seeder.deb")))
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	if out := harness.Run(t, cmd); strings.Contains(out, "failed:") {
		t.Errorf("the loop of docs/rollout.md:\n%s", out)
	}
}

// rolloutAnsible runs the playbook on the host itself, twice: the second run changes
// nothing.
func rolloutAnsible(m *harness.Machine, playbook, deb string) {
	m.T.Helper()
	m.Give(deb, "/root/seeder.deb")
	m.Write("/root/seeder.yaml", playbook, 0o644)
	const command = "ansible-playbook -i localhost, -c local seeder.yaml"
	m.Op(command)
	if out := m.Op(command); !strings.Contains(out, "changed=0") {
		m.T.Errorf("the second run of the playbook changes something:\n%s", out)
	}
}

// rolloutCloudInit runs what cloud-init would run at the first boot.
func rolloutCloudInit(m *harness.Machine, page []byte, deb string) {
	m.T.Helper()
	_, section, _ := strings.Cut(string(page), "\n## cloud-init\n")
	var config struct{ Runcmd [][]string }
	if err := yaml.Unmarshal([]byte(codeBlock(m.T, section, "yaml")), &config); err != nil || len(config.Runcmd) == 0 {
		m.T.Fatalf("the user data of docs/rollout.md: %v, %d commands", err, len(config.Runcmd))
	}
	m.Give(deb, "/srv/seeder.deb")
	for _, words := range config.Runcmd {
		for i, w := range words {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		m.Op(strings.Join(words, " "))
	}
}
