package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
)

func versionCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  seeder version",
		Args:    cli.ArgCount(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(env.Stdout, "seeder %s %s/%s %s\n", cli.Version(), runtime.GOOS, runtime.GOARCH, runtime.Version())
			return err
		},
	}
}
