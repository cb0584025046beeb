//go:build linux

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
)

func reloadCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Apply a changed configuration file",
		Long: `Tell the daemon on this host to read its configuration again. Transfer limits, the log
level and the secrets change at once, also for running transfers; the command lists the
changed keys that need a restart. An invalid configuration changes nothing.

The secret file, or the k3s token if there is none, is read again, too. This is how a
running cluster changes its secret (docs/security.md).`,
		Example: "  seeder reload",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	control.Flags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		var out control.Reloaded
		if err := c.Post(cmd.Context(), "/v1/reload", nil, &out); err != nil {
			return err
		}
		for _, s := range out.Applied {
			fmt.Fprintf(env.Stdout, "%s is now %v (%s)\n", s.Key, s.Value, s.Source)
		}
		for _, s := range out.Restart {
			fmt.Fprintf(env.Stdout, "%s will be %v (%s) after a restart of the daemon\n", s.Key, s.Value, s.Source)
		}
		if len(out.Applied)+len(out.Restart) == 0 {
			fmt.Fprintln(env.Stdout, "nothing has changed")
		}
		return nil
	}
	return cmd
}
