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
		Short: "Show which node has which announced image",
		Long: `Show every announced image against every node. A cell is ready, or says how far
the node is; below the table stands why. Where there are more nodes than a table has
room for, it counts them by state, and below stand those that are not ready, with
their reasons. With REF: that image alone, with all nodes.

States: waiting, fetching, importing, ready, failed (tried again), excluded (not
meant to hold it), unreachable. FROM is where a node's bytes came from: peers, those
that gave most first, and local for what it had already.

In the JSON only: withdrawn images; and of each node how fast it is
(rate_bytes_per_second), the bytes from each source (sources), those that came on the
wire (wire_bytes) and those that peers got from it (sent_bytes), of this version and
since the node started.`,
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
