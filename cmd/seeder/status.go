package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p"
)

const watchInterval = time.Second

func statusCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node is and what it is doing",
		Long: `Show this node: its containerd, the cluster as it sees it, its images, what is on
its way to it, and the free space of its disk. With --watch: again every second, with
a bar for each image on its way; with -o json one object per line.`,
		Example: "  seeder status\n  seeder status --watch\n  seeder status -o json | jq .converged",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	clientFlags(env, cmd)
	out := cli.OutputFlag(cmd)
	watch := cmd.Flags().BoolP("watch", "w", false, "show it again every second until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newClient(env)
		if err != nil {
			return err
		}
		if *watch {
			return watchStatus(cmd.Context(), env, c, *out)
		}
		var status p2p.Status
		if err := c.get(cmd.Context(), "/v1/status", nil, &status); err != nil {
			return err
		}
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, status)
		}
		for _, line := range statusLines(terminalOf(env, env.Stdout), status) {
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
func watchStatus(ctx context.Context, env *cli.Env, c *client, out cli.Output) error {
	show, done := statusViewer(env, out)
	defer done()
	for {
		var status p2p.Status
		err := c.get(ctx, "/v1/status", nil, &status)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := show(status); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

// statusViewer returns what shows a status, and what is to be called after the last
// one.
func statusViewer(env *cli.Env, out cli.Output) (show func(p2p.Status) error, done func()) {
	term := terminalOf(env, env.Stdout)
	switch {
	case out == "json":
		return func(s p2p.Status) error { return json.NewEncoder(env.Stdout).Encode(s) }, func() {}
	case !term.live:
		return func(s p2p.Status) error {
			_, err := fmt.Fprintln(env.Stdout, strings.Join(statusLines(term, s), "\n")+"\n")
			return err
		}, func() {}
	}
	size := func() terminal { return terminalOf(env, env.Stdout) }
	b := newBoard(env.Stdout, size)
	return func(s p2p.Status) error {
		b.show(statusRows(size(), s))
		return nil
	}, b.close
}

// statusRows are the status as a terminal shows it again and again, with a bar for
// each transfer that it has room for.
func statusRows(term terminal, s p2p.Status) []boardRow {
	var rows []boardRow
	for i, r := range statusTable(term, s).rows {
		rows = append(rows, boardRow{key: fmt.Sprint("line ", i), text: []cell{{fmt.Sprintf("%-12s", r[0].text), r[0].colour}, r[1]}})
	}
	room := max(term.height-len(rows)-3, 1)
	for i, tr := range s.Transfers {
		if i == room {
			rest := "… and " + plural(len(s.Transfers)-i, "more image") + " on the way"
			rows = append(rows, boardRow{key: "more", text: []cell{{rest, faint}}})
			break
		}
		rows = append(rows, nodeRow("", p2p.NodeState{Name: short(tr.Reference), State: tr.State, Reason: string(tr.State), DoneBytes: tr.DoneBytes,
			TotalBytes: tr.TotalBytes, RateBytesPerSecond: tr.RateBytesPerSecond, Sources: tr.Sources}, term.width))
	}
	return rows
}

// maxTransfers is how many transfers a status lists.
const maxTransfers = 12

// statusLines are the status as it is shown once.
func statusLines(term terminal, s p2p.Status) []string {
	t := statusTable(term, s)
	for _, tr := range s.Transfers[:min(len(s.Transfers), maxTransfers)] {
		parts := []string{fmt.Sprintf("%s  %s of %s", short(tr.Reference), size(tr.DoneBytes), size(tr.TotalBytes))}
		if rate := speed(tr.RateBytesPerSecond); rate != "" {
			parts = append(parts, "at "+rate+",", left(tr.DoneBytes, tr.TotalBytes, tr.RateBytesPerSecond))
		}
		if len(tr.Sources) > 0 {
			parts = append(parts, from(tr.Sources))
		}
		n := p2p.NodeState{State: tr.State, DoneBytes: tr.DoneBytes, TotalBytes: tr.TotalBytes}
		t.add(cell{stateText(n), faint}, cell{strings.Join(parts, " "), yellow})
	}
	if more := len(s.Transfers) - maxTransfers; more > 0 {
		t.add(cell{"", ""}, cell{"… and " + plural(more, "more image") + " on the way", faint})
	}
	return t.lines()
}

// statusTable is this node, without its transfers.
func statusTable(term terminal, s p2p.Status) *table {
	t := &table{term: term}
	line := func(name, colour, format string, args ...any) {
		t.add(cell{name, faint}, cell{fmt.Sprintf(format, args...), colour})
	}
	line("node", "", "%s  %s  %s", clean(s.Node), clean(s.Version), clean(s.ID))
	switch {
	case s.Containerd.OK:
		line("containerd", green, "%s  %s", clean(s.Containerd.Version), clean(s.Containerd.Address))
	case s.Containerd.Reason == "":
		line("containerd", yellow, "not asked yet")
	default:
		line("containerd", red, "waiting: %s", clean(s.Containerd.Reason))
	}
	line("members", "", "%d alive", s.Members)
	colour, text := green, "converged"
	if !s.Converged {
		colour, text = yellow, "not converged"
	}
	line("images", colour, "%d of %d ready, %s", s.Images.Ready, s.Images.Total, text)
	line("disk", "", "%s free", size(s.Disk.FreeBytes))
	return t
}
