package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// SSHUser is who may log in where StartSSH has run: no root, by a key alone.
const SSHUser = "me"

// StartSSH starts Debian's sshd on the host, with the user SSHUser, and puts seeder where
// sudo finds programs. sudoers is the line that says what the user may do; "" for nothing.
func (h *Host) StartSSH(sudoers string) {
	h.T.Helper()
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		h.T.Fatalf("sshd is not installed: %v; `make test` installs it", err)
	}
	program, err := os.ReadFile(SeederBin(h.T))
	if err != nil {
		h.T.Fatal(err)
	}
	h.Sh("mkdir -p /run/sshd /run/bin /run/home && ssh-keygen -q -t ed25519 -N '' -f /run/host_key && useradd -M -d /run/home -s /bin/sh " + SSHUser +
		" && usermod -p '*' " + SSHUser)
	h.Write("/run/bin/seeder", string(program), 0o755)
	h.Write("/run/authorized_keys", h.publicKey(), 0o644)
	// No name is looked up in a DNS that the host does not reach.
	h.Write("/etc/hosts", fmt.Sprintf("127.0.0.1 localhost %s\n", h.Name), 0o644)
	h.Write("/etc/sudoers.d/seeder-push", "Defaults secure_path=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"+sudoers+"\n", 0o440)
	h.Write("/run/sshd_config", `HostKey /run/host_key
PidFile none
AuthorizedKeysFile /run/authorized_keys
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv LANG LC_*
`, 0o644)
	d := h.Start(nil, sshd, "-D", "-e", "-f", "/run/sshd_config")
	Eventually(h.T, 10*time.Second, "sshd listens on "+h.Name, func() error {
		select {
		case <-d.Done:
			h.T.Fatalf("sshd ended on %s:\n%s", h.Name, d.Log.Tail(20))
		default:
		}
		if !strings.Contains(d.Log.Tail(20), "Server listening on ") {
			return fmt.Errorf("it says %q", d.Log.Tail(20))
		}
		return nil
	})
}

func (h *Host) keyFile() string { return filepath.Join(h.Net.Dir, "ssh_key") }

// publicKey is of the key that is everybody's in the network.
func (h *Host) publicKey() string {
	h.T.Helper()
	if _, err := os.Stat(h.keyFile()); err != nil {
		Run(h.T, exec.CommandContext(h.T.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.keyFile()))
	}
	b, err := os.ReadFile(h.keyFile() + ".pub")
	if err != nil {
		h.T.Fatal(err)
	}
	return string(b)
}

// SSH is the ssh command by which this host logs in elsewhere.
func (h *Host) SSH() string {
	return "ssh -F none -i " + h.keyFile() + " -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5"
}

// SentBytes is what has left the host by its cable, headers and all.
func (h *Host) SentBytes() (n int64) {
	h.T.Helper()
	for line := range strings.Lines(h.Sh("cat /proc/net/dev")) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
			if _, err := fmt.Sscan(strings.Fields(rest)[8], &n); err != nil {
				h.T.Fatalf("%q: %v", line, err)
			}
		}
	}
	return n
}
