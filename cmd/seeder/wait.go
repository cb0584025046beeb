//go:build linux

package main

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
)

const defaultWait = 10 * time.Minute

// allFlag adds --all to a command that waits for nodes.
func allFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("all", false, "also wait for nodes that are down")
}

func waitCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait [REF...]",
		Short: "Wait until images are ready on all nodes",
		Long: `Wait until the images are ready on every alive node that should hold them. Without REF:
all images that are announced now. A REF that is not announced yet is waited for, too.
Nodes that are down are listed and not waited for, except with --all.
Exit code 3: not ready within the timeout.

With -o json, the output is one object per line: progress and ready (with "image", a
row of ` + "`seeder images -o json`" + `; ready also has "saved", what the nodes measured),
and at the end done or error.`,
		Example: "  seeder wait\n  seeder wait k3s-dashboard:latest --timeout 2m",
		Args:    cli.ArgCount(0, -1, "references"),
	}
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	timeout := new(time.Duration)
	cli.TimeoutVar(cmd.Flags(), timeout, "timeout", defaultWait, "give up after this `time`; 0: never")
	all := allFlag(cmd)
	cmd.ValidArgsFunction = completeRefs(env, announcedRefs, 0)
	cli.CompleteWords(cmd, "timeout", false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query := url.Values{"all": {strconv.FormatBool(*all)}}
		for _, arg := range args {
			ref, err := cli.NormalizeRef(arg)
			if err != nil {
				return err
			}
			query.Add("ref", ref)
		}
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		f := show.NewFollower(env, *out, *timeout)
		return f.Follow(cmd.Context(), c, http.MethodGet, "/v1/wait", query, nil)
	}
	return cmd
}
