package docs

import (
	"path/filepath"
	"strings"
	"testing"
)

// evidence is the file of a test that runs a command, and what it runs of it; or why no test
// runs it.
type evidence struct {
	file, runs string
	why        string
}

const (
	exportTest  = "../test/hosts/export_test.go"
	sshPushTest = "../test/hosts/sshpush_test.go"
	bootTest    = "../test/boot/boot_test.go"
	readmeTest  = "../test/boot/readme_test.go"
	releaseTest = "../test/boot/release_test.go"
	rolloutTest = "../test/boot/rollout_test.go"
	upgradeTest = "../test/boot/upgrade_test.go"
)

// commands are those of the pages, README.md aside: TestReadme runs each of its own. A block
// of more than one line is named by its first.
var commands = map[string]evidence{
	"make package": {file: readmeTest, runs: `{"make package", r.packages}`},
	"make install": {file: "../test/boot/packages_test.go", runs: "func TestMakeInstall("},
	"gpg --import seeder.asc && gpg --verify SHA256SUMS.asc SHA256SUMS":                                                 {file: releaseTest, runs: `"--verify", "SHA256SUMS.asc", "SHA256SUMS"`},
	"sha256sum --check --ignore-missing SHA256SUMS":                                                                     {file: releaseTest, runs: `"sha256sum", "--check"`},
	"cp seeder.asc /etc/apt/keyrings/seeder.asc":                                                                        {file: releaseTest, runs: "/etc/apt/keyrings/seeder.asc"},
	`echo "deb [signed-by=/etc/apt/keyrings/seeder.asc] file:/srv/seeder/apt ./" > /etc/apt/sources.list.d/seeder.list`: {file: releaseTest, runs: "deb [signed-by=/etc/apt/keyrings/seeder.asc] file:"},
	"apt-get update && apt-get install seeder":                                                                          {file: releaseTest, runs: "apt-get install -qq -y seeder"},
	"dpkg -i seeder_*_amd64.deb":                                                                                        {file: bootTest, runs: "dpkg -i"},
	"systemctl enable --now seeder":                                                                                     {file: bootTest, runs: "systemctl enable --now seeder"},
	"seeder doctor":                                                                                                     {file: readmeTest, runs: `{"seeder doctor", r.doctor}`},
	"seeder secret generate > /etc/seeder/secret":                                                                       {file: readmeTest, runs: `{"seeder secret generate > /etc/seeder/secret", r.secret}`},
	"scp -p /etc/seeder/secret root@host2:/etc/seeder/":                                                                 {why: "the booted hosts have no sshd; the loop of rollout.md runs with a stand-in"},
	"systemctl restart seeder":                                                                                          {file: bootTest, runs: "systemctl restart seeder"},
	"nft add rule inet filter input ip saddr 10.0.0.0/24 tcp dport 7951 accept":                                         {file: "../test/hosts/operations_test.go", runs: "nft add rule .+"},
	"nft add rule inet filter input ip saddr 10.0.0.0/24 udp dport 7950 accept":                                         {file: "../test/hosts/operations_test.go", runs: "nft add rule .+"},
	"ufw allow proto tcp from 10.0.0.0/24 to any port 7951":                                                             {why: "ufw is not installed for the tests"},
	"ufw allow proto udp from 10.0.0.0/24 to any port 7950":                                                             {why: "ufw is not installed for the tests"},
	"firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=10.0.0.0/24 port port=7951 protocol=tcp accept'": {why: "firewalld is not installed for the tests"},
	"firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=10.0.0.0/24 port port=7950 protocol=udp accept'": {why: "firewalld is not installed for the tests"},
	"firewall-cmd --reload":                              {why: "firewalld is not installed for the tests"},
	"seeder announce --from app-images.tar.zst":          {file: "../store/storetest/corpus.go", runs: "zstd"},
	"rm /var/lib/kubelet/image_manager/pulling/sha256-…": {file: "../test/hosts/away_test.go", runs: "rm /var/lib/kubelet/image_manager/pulling/"},
	"rm /var/lib/kubelet/image_manager/pulled/sha256-…":  {file: "../test/hosts/kubeletmirror_test.go", runs: `"rm "+pulledDir+"/sha256-"`},
	"systemctl restart k3s-agent":                        {why: "the hosts of the tests have a stand-in for k3s"},
	"seeder members":                                     {file: readmeTest, runs: `{"seeder members", r.prints`},
	"seeder wait --timeout 10m":                          {file: readmeTest, runs: `{"seeder wait --timeout 5m", r.wait}`},
	"k3s token rotate --new-token NEW":                   {why: "the hosts of the tests have a stand-in for k3s; TestDoctorSecrets changes its token"},
	"seeder reload":                                      {file: "../test/hosts/rotation_test.go", runs: `"reload"`},
	"cut -d: -f2 /var/lib/seeder/registry-credentials | docker login -u seeder --password-stdin 127.0.0.1:7953": {file: "../test/hosts/push_test.go", runs: `login -u seeder --password-stdin " + mirror`},
	"docker tag k3s-dashboard:latest 127.0.0.1:7953/k3s-dashboard:latest":                                       {file: "../test/hosts/push_test.go", runs: `tag local-app:v1 " + mirror + "/" + as`},
	"docker push 127.0.0.1:7953/k3s-dashboard:latest":                                                           {file: "../test/hosts/push_test.go", runs: `push " + mirror + "/" + as`},
	"seeder wait k3s-dashboard:latest":                                                                          {file: "../test/hosts/push_test.go", runs: `a.Run("wait", ref`},
	"seeder registry setup --write":                                                                             {file: "../test/hosts/registry_test.go", runs: `"registry", "setup", "--for", "containerd", "--write"`},
	"seeder export app:v1 -o app-v1.tar":                                                                        {file: readmeTest, runs: `{"seeder export app:v1 -o app-v1.tar", r.prints`},
	"seeder announce --from app-v1.tar":                                                                         {file: exportTest, runs: `b.Run("announce", "--from", whole)`},
	"seeder export app:v2 --since app:v1 -o app-v2.tar":                                                         {file: exportTest, runs: `"--since", harness.ShortName, "-o", back`},
	"seeder export app:latest --since app:latest@sha256:DIGEST -o app.tar":                                      {file: exportTest, runs: `"--since", harness.ShortName+"@"+before, "-o", changes`},
	"seeder export app:v2 --since app:v1 -o - | ssh root@node1 seeder announce --from -":                        {why: "the parts are run: -o - by TestExportEnded, --from - by TestFromDockerAndPodman"},
	"seeder push me@node1 k3s-dashboard:latest":                                                                 {file: sshPushTest, runs: `pushed(to+" "+harness.ShortName`},
	"echo 'me ALL=(root) NOPASSWD: /usr/bin/seeder dial-stdio' | sudo tee /etc/sudoers.d/seeder-push":           {file: sshPushTest, runs: `ALL=(root) NOPASSWD: /run/bin/seeder dial-stdio`},
	"ssh -N -L 7953:127.0.0.1:7953 me@node1":                                                                    {file: sshPushTest, runs: `"-N", "-L", port+":"+mirror, harness.SSHUser+`},
	"buildctl build --frontend dockerfile.v0 --local context=. --local dockerfile=. --output type=image,name=127.0.0.1:7953/k3s-dashboard:latest,push=true": {file: "../test/hosts/pushbuildkit_test.go", runs: `/" + how.name + ":v1,push=true"`},
	"systemctl stop seeder":                {file: upgradeTest, runs: "systemctl stop seeder"},
	"rm -rf /var/lib/seeder":               {why: "a shell command; a daemon without its directory is a first start"},
	"truncate -s 0 /etc/machine-id":        {why: "a shell command; p2p/trust tests an identity of another machine"},
	"seeder withdraw k3s-dashboard:latest": {file: readmeTest, runs: `{"seeder withdraw app:v1", r.withdraw}`},
	"systemctl disable --now seeder":       {why: "a command of systemd; the packages stop and disable the unit when they are removed, as TestBooted shows"},
	"apt purge seeder":                     {file: upgradeTest, runs: "dpkg -P seeder"},
	"sed -i 's,file:///usr/share/doc/seeder/,https://YOUR.SERVER/,' alerts.yaml":                                    {why: "a shell command; the rules have that prefix, as cmd/seeder's TestAlerts shows"},
	`for h in $(kubectl get nodes -o jsonpath='{.items[*].status.addresses[?(@.type=="InternalIP")].address}'); do`: {file: rolloutTest, runs: "docs/rollout.md"},
}

// TestCommandsAreRun: each command that a page shows is run by a test, or it is said why none
// does.
func TestCommandsAreRun(t *testing.T) {
	t.Parallel()
	shown, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for command, by := range commands {
		left[command] = true
		if by.why == "" && !strings.Contains(read(t, by.file), by.runs) {
			t.Errorf("%s does not run %q of %q", by.file, by.runs, command)
		}
	}
	for _, page := range shown {
		for _, command := range shownCommands(read(t, page)) {
			if _, known := commands[command]; !known {
				t.Errorf("%s: no test is named that runs %q", page, command)
			}
			delete(left, command)
		}
	}
	for command := range left {
		t.Errorf("no page shows %q any more", command)
	}
}

// shownCommands are the commands of the shell blocks of a page, without their remarks. A loop
// counts as one.
func shownCommands(page string) []string {
	var out []string
	for _, block := range fence.FindAllStringSubmatch(page, -1) {
		if block[1] != "sh" {
			continue
		}
		loop := false
		for line := range strings.Lines(block[2]) {
			command, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "  #")
			if command = strings.TrimSpace(command); command != "" && !loop {
				out = append(out, command)
			}
			loop = (loop || strings.HasPrefix(command, "for ")) && command != "done"
		}
	}
	return out
}
