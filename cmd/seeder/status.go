package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"seeder/p2p"
)

const watchInterval = time.Second

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node is and what it is doing",
		Long: `Show this node: its containerd, the cluster as it sees it, its images, what is on
its way to it, and the free space of its disk. With --watch: again every second,
with -o json one object per line.`,
		Example: "  seeder status\n  seeder status --watch\n  seeder status -o json | jq .converged",
		Args:    argCount(0, 0, "no arguments"),
	}
	a.clientFlags(cmd)
	out := outputFlag(cmd)
	watch := cmd.Flags().BoolP("watch", "w", false, "show it again every second until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.newClient()
		if err != nil {
			return err
		}
		if *watch {
			return a.watchStatus(cmd.Context(), c, *out)
		}
		var status p2p.Status
		if err := c.get(cmd.Context(), "/v1/status", nil, &status); err != nil {
			return err
		}
		if *out == "json" {
			return printJSON(a.stdout, status)
		}
		for _, line := range statusLines(a.terminal(a.stdout), status) {
			if _, err := fmt.Fprintln(a.stdout, line); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// watchStatus shows the status until ctx ends, which is no failure.
func (a *app) watchStatus(ctx context.Context, c *client, out output) error {
	screen := &screen{w: a.stdout, term: a.terminal(a.stdout)}
	for {
		var status p2p.Status
		err := c.get(ctx, "/v1/status", nil, &status)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case out == "json":
			err = json.NewEncoder(a.stdout).Encode(status)
		default:
			err = screen.draw(statusLines(screen.term, status))
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func statusLines(term terminal, s p2p.Status) []string {
	t := &table{term: term}
	line := func(name, colour, format string, args ...any) {
		t.add(cell{name, faint}, cell{fmt.Sprintf(format, args...), colour})
	}
	line("node", "", "%s  %s  %s", clean(s.Node), clean(s.Version), clean(s.ID))
	switch {
	case s.Containerd.OK:
		line("containerd", green, "%s  %s", s.Containerd.Version, s.Containerd.Address)
	case s.Containerd.Reason == "":
		line("containerd", yellow, "not asked yet")
	default:
		line("containerd", red, "waiting: %s", s.Containerd.Reason)
	}
	line("members", "", "%d alive", s.Members)
	colour, text := green, "converged"
	if !s.Converged {
		colour, text = yellow, "not converged"
	}
	line("images", colour, "%d of %d ready, %s", s.Images.Ready, s.Images.Total, text)
	line("disk", "", "%s free", size(s.Disk.FreeBytes))
	for _, tr := range s.Transfers {
		n := p2p.NodeState{State: tr.State, DoneBytes: tr.DoneBytes, TotalBytes: tr.TotalBytes}
		from := ""
		if len(tr.Peers) > 0 {
			from = " from " + clean(strings.Join(tr.Peers, ", "))
		}
		line(stateText(n), yellow, "%s  %s of %s%s", short(tr.Reference), size(tr.DoneBytes), size(tr.TotalBytes), from)
	}
	return t.lines()
}

// screen draws lines over the ones it drew before; where that is not possible,
// below them.
type screen struct {
	w     io.Writer
	term  terminal
	drawn int
}

func (s *screen) draw(lines []string) error {
	if !s.term.live {
		_, err := fmt.Fprintln(s.w, strings.Join(lines, "\n")+"\n")
		return err
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	for _, line := range lines {
		b.WriteString("\x1b[2K" + line + "\n")
	}
	b.WriteString("\x1b[J")
	s.drawn = len(lines)
	_, err := io.WriteString(s.w, b.String())
	return err
}
