package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/demo"
)

// TestSecretIsWarnedOf: a secret that can be guessed, in a file that every user can read,
// is used; the log and `seeder config check` warn of both. Doctor has its own test.
func TestSecretIsWarnedOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(secret, 0o604); err != nil {
		t.Fatal(err)
	}
	ports, err := demo.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--node-name", "n", "--data-dir", filepath.Join(dir, "data"), "--secret-file", secret,
		"--gossip-bind", demo.Loopback(ports[0]), "--transfer-bind", demo.Loopback(ports[1]), "--containerd-address", "embedded",
		"--api-socket", filepath.Join(dir, "run", "s"), "--http-bind", ""}
	want := []string{"every user of this host can read the secret: chmod 600 " + secret, "the secret in line 1 looks as if it could be guessed"}

	var errs bytes.Buffer
	if code := run(t.Context(), append([]string{"config", "check"}, args...), nil, &bytes.Buffer{}, &errs); code != cli.ExitDone {
		t.Fatalf("config check: %d, %s", code, errs.String())
	}
	clitest.WantAll(t, errs.String(), append(want, "warning: ")...)

	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if code := run(ctx, append([]string{"daemon"}, args...), nil, &bytes.Buffer{}, io.MultiWriter(&log, cancelOn{"msg=ready", cancel})); code != cli.ExitDone {
		t.Errorf("the daemon ended with %d: %s", code, log.String())
	}
	clitest.WantAll(t, log.String(), append(want, "level=WARN")...)
}
