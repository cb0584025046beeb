// Package configtest loads configurations for tests.
package configtest

import (
	"testing"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
)

// Load loads a configuration from a file, an environment and flags.
func Load(t testing.TB, yaml string, env map[string]string, flags ...string) (config.Loaded, error) {
	t.Helper()
	a := clitest.Env(t, yaml, env)
	cmd := &cobra.Command{}
	config.KeyFlags(a, cmd)
	if err := cmd.ParseFlags(flags); err != nil {
		t.Fatal(err)
	}
	return config.Load(a, cmd.Flags())
}
