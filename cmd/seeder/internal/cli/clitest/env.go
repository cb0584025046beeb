// Package clitest makes the environment of a command for tests.
package clitest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
)

// Env is the environment of a command: with no input, with the variables vars alone,
// and with yaml as its configuration file. What is written goes nowhere.
func Env(t testing.TB, yaml string, vars map[string]string) *cli.Env {
	t.Helper()
	env := &cli.Env{
		Stdin: strings.NewReader(""), Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{},
		ConfigFile: filepath.Join(t.TempDir(), "seeder.yaml"),
		LookupEnv:  func(name string) (string, bool) { v, ok := vars[name]; return v, ok },
		Environ: func() []string {
			var out []string
			for k, v := range vars {
				out = append(out, k+"="+v)
			}
			return out
		},
	}
	if err := os.WriteFile(env.ConfigFile, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return env
}
