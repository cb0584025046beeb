package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
)

// versionInfo is `seeder version -o json`.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`   // where the build knows it
	Protocol string `json:"protocol,omitempty"` // that nodes speak to each other; none where no daemon runs
	Platform string `json:"platform"`
	Go       string `json:"go"`
}

func thisVersion() versionInfo {
	return versionInfo{Version: cli.Version(), Commit: cli.Commit(), Protocol: protocol(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
}

// String is one line.
func (v versionInfo) String() string {
	s := fmt.Sprintf("seeder %s %s %s", v.Version, v.Platform, v.Go)
	if v.Protocol != "" {
		s += ", protocol " + v.Protocol
	}
	if v.Commit != "" {
		s += ", commit " + v.Commit
	}
	return s
}

func versionCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Long:    "Print the version of this program and of the protocol that it uses with other nodes.\n`seeder --version` does the same.",
		Example: "  seeder version\n  seeder version -o json | jq -r .version",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	out := cli.OutputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, thisVersion())
		}
		_, err := fmt.Fprintln(env.Stdout, thisVersion())
		return err
	}
	return cmd
}
