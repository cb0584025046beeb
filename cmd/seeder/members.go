package main

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/term"
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
		t := &term.Table{Term: term.Of(env, env.Stdout)}
		t.Header("NAME", "ADDRESS", "STATE", "VERSION", "ID")
		for _, m := range members.Members {
			colour := term.Green
			if m.State != "alive" {
				colour = term.Red
			}
			row := []term.Cell{{Text: term.Clean(m.Name)}, {Text: term.Clean(m.Address)}, {Text: term.Clean(m.State), Colour: colour}, {Text: term.Clean(m.Version)}, {Text: term.Clean(m.ID), Colour: term.Faint}}
			if m.Reason != "" {
				row[2].Colour, row = term.Red, append(row, term.Cell{Text: term.Clean(m.Reason)})
			}
			t.Add(row...)
		}
		return t.Print(env.Stdout)
	}
	return cmd
}
