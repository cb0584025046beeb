//go:build linux

package main

import (
	"net/url"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

func imagesCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images [REF]",
		Short: "Show the announced images and their state on each node",
		Long: `Show the state of every announced image on every node, with the reasons below the
table. If there are too many nodes for a table, it counts them by state and lists those
that are not ready, with their reasons. With REF: only that image, with all nodes.

States: waiting, fetching, importing, ready, failed (will be retried), excluded (by a
rule), unreachable. FROM is the source of a node's bytes: peers, largest share
first, and local for what the node had already.

Only the JSON has: withdrawn images; and for each node its transfer rate
(rate_bytes_per_second), the bytes by source (sources), the bytes received on the wire
(wire_bytes) and sent to peers (sent_bytes), for this version and since the node
started.`,
		Example: "  seeder images\n  seeder images k3s-dashboard:latest\n  seeder images -o json | jq -r '.images[] | select(.ready < .total) | .ref'",
		Args:    cli.ArgCount(0, 1, "at most one reference"),
	}
	cmd.ValidArgsFunction = completeRefs(env, announcedRefs, 1)
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		query := url.Values{}
		for _, ref := range args {
			if _, err := cli.NormalizeRef(ref); err != nil {
				return err
			}
			query.Add("ref", ref)
		}
		var images report.Images
		if err := c.Get(cmd.Context(), "/v1/images", query, &images); err != nil {
			return err
		}
		terminal := term.Of(env, env.Stdout)
		switch {
		case *out == "json":
			return cli.PrintJSON(env.Stdout, images)
		case len(args) == 1 && len(images.Images) == 1:
			return show.PrintImage(env.Stdout, terminal, images.Images[0])
		}
		return show.PrintMatrix(env.Stdout, terminal, images)
	}
	return cmd
}
