//go:build linux

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p/trust"
)

func secretCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "secret",
		Short:   "Manage the secret that all nodes of a cluster share",
		Example: "  seeder secret generate > /etc/seeder/secret",
		Args:    cli.NoSuchCommand,
		RunE:    cli.NeedSubcommand,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "generate",
		Short: "Print a new secret",
		Long: `Print a new secret: 32 random bytes as text. All nodes of a cluster need the same secret
in /etc/seeder/secret. Anyone who has it can announce images to all of them. If the
output is a file, its mode is set to 0600.

The file may hold several secrets, one per line: the first is used, all are accepted, so
that a secret can be changed node by node.`,
		Example: "  seeder secret generate > /etc/seeder/secret\n  scp -p /etc/seeder/secret root@host2:/etc/seeder/secret",
		Args:    cli.ArgCount(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if f, ok := env.Stdout.(*os.File); ok {
				if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
					if err := f.Chmod(0o600); err != nil {
						return fmt.Errorf("make the file of the secret private: %w", err)
					}
				}
			}
			_, err := fmt.Fprintln(env.Stdout, trust.GenerateSecret())
			return err
		},
	})
	return cmd
}
