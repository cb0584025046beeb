package push

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"seeder/cmd/seeder/internal/cli"
)

// TestExplain: what ssh, the shell, sudo and seeder say is said with its fix. The texts are
// those of OpenSSH 9.2, dash, bash, coreutils 9.1 and sudo 1.9.13.
func TestExplain(t *testing.T) {
	t.Parallel()
	w := way{ssh: []string{"ssh"}, host: "me@node1", sudo: true, seeder: "seeder"}
	for _, tc := range []struct {
		code         int
		stderr, want string
	}{
		{255, "ssh: Could not resolve hostname node1: Name or service not known", "ssh to me@node1 failed: ssh: Could not resolve hostname"},
		{255, "me@node1: Permission denied (publickey).", "ssh to me@node1 failed: me@node1: Permission denied"},
		{1, "sudo: a password is required", "asks for a password; if seeder is installed there, allow this one command without it, there and once: echo 'me ALL=(root) NOPASSWD: /usr/bin/seeder dial-stdio' |"},
		{1, "sudo: sorry, you must have a tty to run sudo", "failed with exit code 1: sudo: sorry"},
		{1, "me is not in the sudoers file.", "this user may not run seeder by sudo on me@node1"},
		{1, "Sorry, user me is not allowed to execute '/usr/bin/seeder dial-stdio' as root on node1.", "this user may not run seeder by sudo"},
		{1, "sudo: seeder: command not found", "seeder is missing on me@node1: install seeder there, or say where it is: --seeder"},
		{127, "env: ‘sudo’: No such file or directory", "sudo is missing on me@node1: log in as root: seeder push root@node1"},
		{127, "env: 'seeder': No such file or directory", "seeder is missing on me@node1"},
		{2, `seeder: unknown command "dial-stdio" for "seeder"; see`, "the seeder on me@node1 is too old to take a push"},
		{4, "seeder: no seeder daemon answers on /run/seeder/seeder.sock; start it", "on me@node1: no seeder daemon answers on /run/seeder/seeder.sock; start it"},
		{255, "bash: line 1: nvm: command not found\nme@node1: Permission denied (publickey).", "ssh to me@node1 failed: bash: line 1: nvm: command not found"},
		{4, "bash: line 1: nvm: command not found\nseeder: no seeder daemon answers on /run/seeder/seeder.sock; start it", "on me@node1: no seeder daemon answers"},
		{127, "bash: line 1: seeder: command not found", "seeder is missing on me@node1"},
		{0, "", "closed the connection"},
		{0, "Warning: Permanently added 'node1' (ED25519) to the list of known hosts.", "the daemon on me@node1 closed the connection"},
		{-1, "", "failed with exit code -1"},
	} {
		if err := w.explain(tc.code, tc.stderr); !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%d %q: %v, want %q", tc.code, tc.stderr, err, tc.want)
		}
	}
}

// TestFields: a command is split as a shell does it.
func TestFields(t *testing.T) {
	t.Parallel()
	for command, want := range map[string][]string{
		"ssh":                             {"ssh"},
		"ssh -p 2222  -i '/home/a b/key'": {"ssh", "-p", "2222", "-i", "/home/a b/key"},
		`ssh -o "ProxyCommand=nc %h %p"`:  {"ssh", "-o", "ProxyCommand=nc %h %p"},
		`C:\ssh.exe ''`:                   {`C:\ssh.exe`, ""},
	} {
		if got, err := fields(command); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", command, got, err, want)
		}
	}
	for _, command := range []string{"", "  ", "ssh 'x"} {
		if got, err := fields(command); cli.ExitCode(err) != cli.ExitUsage {
			t.Errorf("%q: %q %v", command, got, err)
		}
	}
}

// TestPack: what is compressed comes back, and a reader that breaks off does not end it.
func TestPack(t *testing.T) {
	t.Parallel()
	want := strings.Repeat("seeder", 1<<20)
	p := pack(strings.NewReader(want))
	d, err := zstd.NewReader(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, err := io.ReadAll(d); err != nil || string(got) != want {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	gone := errors.New("gone")
	p = pack(io.MultiReader(strings.NewReader(want), failing{gone}))
	if _, err := io.Copy(io.Discard, p); !errors.Is(err, gone) {
		t.Errorf("a reader that breaks off: %v", err)
	}
	p = pack(strings.NewReader(want))
	if err := p.Close(); err != nil { // waits for who compresses
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
