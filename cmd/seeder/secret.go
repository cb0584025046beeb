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
		Short:   "The secret that all nodes of a cluster share",
		Example: "  seeder secret generate > /etc/seeder/secret",
		Args:    cli.NoSuchCommand,
		RunE:    cli.NeedSubcommand,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "generate",
		Short: "Print a new secret",
		Long: `Print a new secret: 32 random bytes as text. Every node of a cluster needs the
same one in /etc/seeder/secret; whoever has it can bring images to all of them.
Where the output goes into a file, the file gets mode 0600.

The file may hold several secrets, one a line: the first is used, all are
accepted, so that a secret can be changed node by node.`,
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
