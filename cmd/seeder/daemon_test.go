package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// TestEndIsBounded: a part that does not close holds the process up for so long
// and no longer.
func TestEndIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		d := &running{cfg: config.Config{SecretFile: "/absent"}, log: slog.New(slog.DiscardHandler)} // run fails at once, and closes
		d.opened("part that hangs", func() error { <-never; return nil })
		began := time.Now()
		err := d.runBounded(t.Context())
		if took := time.Since(began); err == nil || took != stopTimeout {
			t.Errorf("ended after %s with %v, want an error after %s", took, err, stopTimeout)
		}
		close(never)
	})
}

// startDaemon runs a daemon alone on loopback as a process of its own and returns
// it with its socket, once it answers; with is a command that runs it.
func startDaemon(t *testing.T, with ...string) (cmd *exec.Cmd, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "api.sock")
	args := append(with, "seeder", "daemon", "--node-name", "n1", "--data-dir", filepath.Join(dir, "data"),
		"--gossip-bind", "127.0.0.1:0", "--transfer-bind", "127.0.0.1:0", "--http-bind", "", "--containerd-address", "embedded", "--api-socket", socket)
	cmd = exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	deadline := time.Now().Add(30 * time.Second)
	for code := -1; code != cli.ExitDone; code, _, _ = seeder(t.Context(), socket, "status") {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not answer")
		}
	}
	return cmd, socket
}

// sendArchive begins to send an archive that never ends, and returns once the
// daemon reads it: from then on a request is running.
func sendArchive(t *testing.T, socket string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprint(conn, "POST /v1/announce?archive=true HTTP/1.1\r\nHost: d\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q %v", line, err)
	}
}

// TestStopSignals: the first signal ends the daemon within ten seconds whatever is
// going on, the second one at once.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			cmd, socket := startDaemon(t)
			sendArchive(t, socket)
			began := time.Now()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil || time.Since(began) > 10*time.Second {
				t.Errorf("ended after %s with %v, want no error within 10 s", time.Since(began), err)
			}
			if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}

			cmd, socket = startDaemon(t)
			sendArchive(t, socket) // takes a second to end
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			var err error
			for err == nil { // the first one, and then those after it
				if serr := cmd.Process.Signal(sig); serr != nil && !errors.Is(serr, os.ErrProcessDone) {
					t.Fatal(serr)
				}
				select {
				case err = <-ended:
					if err == nil {
						t.Fatal("the second signal was as gentle as the first")
					}
				case <-time.After(20 * time.Millisecond):
				}
			}
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != sig {
				t.Errorf("ended with %v, want it ended by %s", err, sig)
			}
		})
	}
}

func TestLoadSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	absent := filepath.Join(dir, "absent")
	withDefault, isDirectory := t.TempDir(), t.TempDir()
	for _, d := range []string{filepath.Join(withDefault, "etc/seeder"), filepath.Join(isDirectory, config.DefaultSecretFile)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	good := write("good", "# the new one\n0123456789012345678901234567890123456789\n\nabcdefghijklmnopqrstuvwxyz\n")
	if err := os.Symlink(good, filepath.Join(withDefault, config.DefaultSecretFile)); err != nil {
		t.Fatal(err)
	}
	open := config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}, Transfer: config.Transfer{Bind: "127.0.0.1:7951"}}
	local := config.Config{Gossip: config.Gossip{Bind: "127.0.0.1:7950"}, Transfer: config.Transfer{Bind: "[::1]:7951"}}
	advertised := local
	advertised.Transfer.Advertise = "10.0.0.1"
	named := open
	named.SecretFile = good
	marked := open
	marked.SecretFile = write("marked", "\xef\xbb\xbf"+trust.GenerateSecret()+"\n")
	quoted := open
	quoted.SecretFile = write("quoted", `"`+trust.GenerateSecret()+`"`+"\n")
	short := open
	short.SecretFile = write("short", "abc\n")
	empty := open
	empty.SecretFile = write("empty", "# nothing\n")
	exposed := open
	exposed.SecretFile = write("exposed", trust.GenerateSecret()+"\n")
	if err := os.Chmod(exposed.SecretFile, 0o604); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, root string
		cfg        config.Config
		secrets    int
		want       []string // in the error, or in the note
	}{
		{"default file", withDefault, open, 2, nil},
		{"named file", absent, named, 2, []string{"the secret in line 4 looks as if it could be guessed", "seeder secret generate"}},
		{"that everybody can read", absent, exposed, 1, []string{"every user of this host can read the secret: chmod 600 " + exposed.SecretFile}},
		{"with a byte order mark", absent, marked, 0, []string{marked.SecretFile, "save it as UTF-8 without BOM"}},
		{"in quotes", absent, quoted, 0, []string{quoted.SecretFile, "line 1 has quotes around it", "remove them"}},
		{"none, other hosts", absent, open, 0, []string{"no secret", "gossip.bind 0.0.0.0:7950", "seeder secret generate > /etc/seeder/secret", "mode 0600"}},
		{"none, advertised to other hosts", absent, advertised, 0, []string{"transfer.advertise 10.0.0.1"}},
		{"none, loopback", absent, local, 1, []string{"stays alone"}},
		{"too short", absent, short, 0, []string{short.SecretFile, "seeder secret generate"}},
		{"nothing in it", absent, empty, 0, []string{empty.SecretFile}},
		{"named but absent", absent, config.Config{SecretFile: absent}, 0, []string{"secret_file", absent, "seeder secret generate"}},
		{"a directory", isDirectory, open, 0, []string{isDirectory}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f, err := k3s.LoadSecrets(tc.cfg, tc.root)
			if len(f.Secrets) != tc.secrets || (err == nil) != (tc.secrets > 0) {
				t.Fatalf("%d secrets, %v; want %d", len(f.Secrets), err, tc.secrets)
			}
			text := f.Note
			if err != nil {
				text = err.Error()
				if cli.ExitCode(err) != cli.ExitUsage {
					t.Errorf("exit code %d", cli.ExitCode(err))
				}
			}
			clitest.WantAll(t, text, tc.want...)
		})
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	socket := controltest.Serve(t, &controltest.Node{})
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	second := control.NewServer(socket, &controltest.Node{}, &controltest.Node{}, &controltest.Node{}, slog.New(slog.DiscardHandler))
	if err := second.Open(); err == nil || !strings.Contains(err.Error(), "another seeder daemon answers there") {
		t.Errorf("a second daemon on the same socket: %v", err)
	}
	// What a crashed daemon left behind is no daemon.
	stale := filepath.Join(t.TempDir(), "api.sock")
	left, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	third := control.NewServer(stale, &controltest.Node{}, &controltest.Node{}, &controltest.Node{}, slog.New(slog.DiscardHandler))
	if err := third.Open(); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := seeder(t.Context(), stale, "status"); code != cli.ExitDone {
		t.Error(errs)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
}

// TestDaemonGoesAway: a wait whose daemon ends is exit code 4, not a hang.
func TestDaemonGoesAway(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "api.sock")
	f := &controltest.Node{Steps: []report.Images{controltest.Row(1, report.Fetching)}}
	c := control.NewServer(socket, f, f, f, slog.New(slog.DiscardHandler))
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	out := cancelOn{"fetching", func() {
		go func() { closed <- c.Close() }()
	}}
	var errs bytes.Buffer
	if code := run(t.Context(), []string{"wait", "--socket", socket}, nil, out, &errs); code != cli.ExitNoDaemon {
		t.Errorf("exit code %d, want %d: %s", code, cli.ExitNoDaemon, errs.String())
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
