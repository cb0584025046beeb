//go:build linux

package main

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

func membersCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "Show the nodes of the cluster",
		Long: `Show all known nodes of the cluster, including those that are dead or have left, and
since when. The address is the one for image transfer; ` + "`seeder announce --on`" + ` selects
by the labels. Members with an incompatible protocol version are listed with the reason
and are not contacted.

A dead node counts as a member of the cluster for three days. If it will not come back,
remove it with ` + "`seeder members forget NAME`" + `.`,
		Example: "  seeder members\n  seeder members -o json | jq -r '.members[] | select(.state != \"alive\") | .name'\n  seeder members forget h3",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		var members report.Members
		if err := c.Get(cmd.Context(), "/v1/members", nil, &members); err != nil {
			return err
		}
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, members)
		}
		return memberTable(term.Of(env, env.Stdout), members).Print(env.Stdout)
	}
	cmd.AddCommand(forgetCommand(env))
	return cmd
}

// memberTable has what a narrow terminal must not cut off in front.
func memberTable(terminal term.Terminal, members report.Members) *term.Table {
	labelled := slices.ContainsFunc(members.Members, func(m report.MemberState) bool { return len(m.Labels) > 0 })
	t := &term.Table{Term: terminal}
	names := []string{"NAME", "STATE", "SINCE", "ADDRESS"}
	if labelled {
		names = append(names, "LABELS")
	}
	t.Header(append(names, "VERSION", "ID")...)
	for _, m := range members.Members {
		name, state, since := term.Cell{Text: term.Clean(m.Name)}, term.Cell{Text: term.Clean(m.State), Colour: term.Green}, term.Cell{}
		if m.Name == members.Node {
			name.Text += " (this host)"
		}
		if m.State != "alive" || m.Reason != "" {
			state.Colour = term.Red
		}
		if !m.Since.IsZero() {
			since.Text = term.Clock(m.Since)
		}
		row := []term.Cell{name, state, since, {Text: term.Clean(m.Address)}}
		if labelled {
			row = append(row, term.Cell{Text: term.Clean(labelText(m.Labels))})
		}
		row = append(row, term.Cell{Text: term.Clean(m.Version)}, term.Cell{Text: term.Clean(m.ID), Colour: term.Faint})
		if m.Reason != "" {
			row = append(row, term.Cell{Text: term.Clean(m.Reason)})
		}
		t.Add(row...)
	}
	return t
}

// labelText is "role=gpu,zone=a".
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}

func forgetCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget NAME",
		Short: "Remove a dead node from the cluster",
		Long: `Remove a dead node from the cluster, on all alive nodes: it is no longer counted, and no
node tries to reach it. If it comes back, it is a member again. A node that is alive
cannot be forgotten: stop seeder there first.`,
		Example: "  seeder members forget h3",
		Args:    cli.ArgCount(1, 1, "one name, as `seeder members` shows it"),
	}
	control.Flags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		if err := c.Post(cmd.Context(), "/v1/forget", url.Values{"name": {args[0]}}, nil); err != nil {
			return err
		}
		_, err = fmt.Fprintf(env.Stdout, "%s is forgotten\n", term.Clean(args[0]))
		return err
	}
	return cmd
}
