//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
)

const watchInterval = time.Second

func statusCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the status of this node",
		Long: `Show the status of this node. The first line is green if all is well, amber if
something is in progress or missing, red if something failed; it names the command to
run. Below it: containerd, the cluster as this node sees it, its images, transfers in
progress, and free disk space. With --watch the output is refreshed every second, with
a progress bar for each image; with -o json it is one object per line.`,
		Example: "  seeder status\n  seeder status --watch\n  seeder status -o json | jq .converged",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	watch := cmd.Flags().BoolP("watch", "w", false, "refresh every second until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		if *watch {
			return watchStatus(cmd.Context(), env, c, *out)
		}
		var status control.Judged
		if err := c.Get(cmd.Context(), "/v1/status", nil, &status); err != nil {
			return err
		}
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, status)
		}
		for _, line := range show.StatusLines(term.Of(env, env.Stdout), status) {
			if _, err := fmt.Fprintln(env.Stdout, line); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// watchStatus shows the status until ctx ends, which is no failure: over the one
// before on a terminal, else below it.
func watchStatus(ctx context.Context, env *cli.Env, c *control.Client, out cli.Output) error {
	display, done := show.StatusViewer(env, out)
	defer done()
	for {
		var status control.Judged
		err := c.Get(ctx, "/v1/status", nil, &status)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := display(status); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}
