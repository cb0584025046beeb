package main

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p"
)

func membersCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "members",
		Short:   "Show the nodes of the cluster",
		Long:    "Show the nodes that gossip knows, those that are dead or have left too. The\naddress is where images travel. A member that speaks no protocol of this node's is\nshown with the reason, and nothing is asked of it.",
		Example: "  seeder members\n  seeder members -o json | jq -r '.members[] | select(.state != \"alive\") | .name'",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	clientFlags(env, cmd)
	out := cli.OutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newClient(env)
		if err != nil {
			return err
		}
		var members p2p.Members
		if err := c.get(cmd.Context(), "/v1/members", nil, &members); err != nil {
			return err
		}
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, members)
		}
		t := &table{term: terminalOf(env, env.Stdout)}
		t.header("NAME", "ADDRESS", "STATE", "VERSION", "ID")
		for _, m := range members.Members {
			colour := green
			if m.State != "alive" {
				colour = red
			}
			row := []cell{{clean(m.Name), ""}, {clean(m.Address), ""}, {clean(m.State), colour}, {clean(m.Version), ""}, {clean(m.ID), faint}}
			if m.Reason != "" {
				row[2].colour, row = red, append(row, cell{clean(m.Reason), ""})
			}
			t.add(row...)
		}
		return t.print(env.Stdout)
	}
	return cmd
}
