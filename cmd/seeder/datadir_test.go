package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/demo"
	"seeder/internal/disk/disktest"
	"seeder/p2p/trust"
)

// TestNewerSchemaIsLeftAlone: the daemon refuses before it opens anything there.
func TestNewerSchemaIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "schema"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(trust.GenerateSecret()), 0o600); err != nil {
		t.Fatal(err)
	}
	ports, err := demo.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var errs bytes.Buffer
	code := run(ctx, []string{"daemon", "--data-dir", dir, "--secret-file", secret, "--containerd-address", "embedded",
		"--gossip-bind", demo.Loopback(ports[0]), "--transfer-bind", demo.Loopback(ports[1]), "--http-bind", "",
		"--api-socket", filepath.Join(t.TempDir(), "s")}, nil, &errs, io.MultiWriter(&errs, cancelOn{"msg=ready", cancel}))
	if code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	clitest.WantAll(t, errs.String(), dir, "schema 2", "up to 1")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 { // schema, lock
		t.Errorf("%v %v", entries, err)
	}
}

// node starts a daemon in this process and returns when it is ready.
func node(t *testing.T, dir, secret, join string) (socket, transfer string) {
	t.Helper()
	ports, err := demo.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := context.WithCancel(ctx)
	done := make(chan int, 1)
	socket, transfer = filepath.Join(dir, "run", "s"), demo.Loopback(ports[1])
	args := []string{"daemon", "--node-name", filepath.Base(dir), "--data-dir", filepath.Join(dir, "data"), "--secret-file", secret,
		"--gossip-bind", demo.Loopback(ports[0]), "--transfer-bind", transfer, "--containerd-address", "embedded",
		"--api-socket", socket, "--http-bind", ""}
	if join != "" {
		args = append(args, "--gossip-join", join)
	}
	go func() {
		done <- run(ctx, args, nil, os.Stderr, cancelOn{"msg=ready", ended})
		ended()
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != cli.ExitDone {
			t.Errorf("the daemon ended with %d", code)
		}
	})
	<-ready.Done()
	return socket, transfer
}

// TestFileModes: whatever the umask, what the daemon writes is for its owner.
func TestFileModes(t *testing.T) {
	t.Parallel()
	for _, umask := range []int{0, 0o077} {
		t.Run(fmt.Sprintf("%03o", umask), func(t *testing.T) {
			t.Parallel()
			if !disktest.Alone(t) {
				return
			}
			syscall.Umask(umask)
			dir := t.TempDir()
			image, secret := filepath.Join(dir, "image.tar"), filepath.Join(dir, "secret")
			if _, err := demo.PackImage(t.Context(), image, dir, smallImage); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(secret, []byte(trust.GenerateSecret()), 0o600); err != nil {
				t.Fatal(err)
			}
			first, join := node(t, filepath.Join(dir, "n1"), secret, "")
			second, _ := node(t, filepath.Join(dir, "n2"), secret, join)
			if code, out, errs := seeder(t.Context(), first, "announce", "--from", image, "--timeout", "5m"); code != cli.ExitDone {
				t.Fatal(code, out, errs)
			}
			if code, out, errs := seeder(t.Context(), second, "wait", "--timeout", "5m"); code != cli.ExitDone {
				t.Fatal(code, out, errs)
			}
			for _, n := range []string{"n1", "n2"} {
				checkModes(t, filepath.Join(dir, n))
			}
		})
	}
}

// checkModes looks at everything that the daemon of dir wrote. What containerd's
// content store writes below the embedded store has the modes that containerd
// gives it, in a directory that is private.
func checkModes(t *testing.T, dir string) {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(filepath.Join(dir, "data"), path)
		found[strings.Split(name, "/")[0]] = true
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
		if name == "embedded/content" {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{"identity", "catalog.db", "lock", "schema", "seeds", "stage", "cache", "embedded"} {
		if !found[name] {
			t.Errorf("no %s in %v", name, found)
		}
	}
	info, err := os.Lstat(filepath.Join(dir, "run", "s"))
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("control socket: %v %v", info.Mode(), err)
	}
}
