package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
)

// TestMain lets the scripts and the demo run this test binary as `seeder`.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"seeder": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode":  expectExitCode,
			"freeports": setFreePorts,
			"waitlog":   waitForLog,
			"waitready": waitReady,
			"demoimage": makeDemoImage,
			"empty":     isEmpty,
			"geturl":    getURL,
		},
		// The scripts about a missing secret say nothing on a machine that has one.
		Condition: func(cond string) (bool, error) {
			if cond != "bare" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			for _, path := range []string{"/etc/seeder", "/etc/rancher", "/var/lib/rancher"} {
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					return false, nil
				}
			}
			return true, nil
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
	})
}

func testApp() (*cli.Env, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return &cli.Env{
		Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
		LookupEnv: func(string) (string, bool) { return "", false },
		Environ:   func() []string { return nil },
	}, &stdout, &stderr
}

// TestEveryCommandHelps: every command says what it does, and how by example.
func TestEveryCommandHelps(t *testing.T) {
	t.Parallel()
	a, _, _ := testApp()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Name() != "help" && (cmd.Short == "" || !strings.Contains(cmd.Example, "seeder")) {
			t.Errorf("%s has no Short or no Example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand(a))
}

// TestSecretFileIsPrivate: the documented one-liner leaves a secret that only its
// owner can read, whatever the umask.
func TestSecretFileIsPrivate(t *testing.T) {
	t.Parallel()
	file, err := os.OpenFile(t.TempDir()+"/secret", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var stderr bytes.Buffer
	if code := run(context.Background(), []string{"secret", "generate"}, nil, file, &stderr); code != cli.ExitDone {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Size() < 32 {
		t.Errorf("mode %o, %d bytes; want 600 and at least 32", info.Mode().Perm(), info.Size())
	}
}
