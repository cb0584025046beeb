package show

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
)

// StatusViewer returns what shows a status, and what is to be called after the last
// one.
func StatusViewer(env *cli.Env, out cli.Output) (show func(control.Judged) error, done func()) {
	terminal := term.Of(env, env.Stdout)
	switch {
	case out == "json":
		return func(s control.Judged) error { return json.NewEncoder(env.Stdout).Encode(s) }, func() {}
	case !terminal.Live:
		return func(s control.Judged) error {
			_, err := fmt.Fprintln(env.Stdout, strings.Join(StatusLines(terminal, s), "\n")+"\n")
			return err
		}, func() {}
	}
	size := func() term.Terminal { return term.Of(env, env.Stdout) }
	b := term.NewBoard(env.Stdout, size)
	return func(s control.Judged) error {
		b.Show(statusRows(size(), s))
		return nil
	}, b.Close
}

// statusRows are the status as a terminal shows it again and again, with a bar for
// each transfer that it has room for.
func statusRows(terminal term.Terminal, s control.Judged) []term.BoardRow {
	var rows []term.BoardRow
	for i, r := range statusTable(terminal, s).Rows {
		rows = append(rows, term.BoardRow{Key: fmt.Sprint("line ", i), Text: []term.Cell{{Text: fmt.Sprintf("%-12s", r[0].Text), Colour: r[0].Colour}, r[1]}})
	}
	room := max(terminal.Height-len(rows)-3, 1)
	for i, tr := range s.Transfers {
		if i == room {
			rest := "… and " + term.Plural(len(s.Transfers)-i, "more image") + " on the way"
			rows = append(rows, term.BoardRow{Key: "more", Text: []term.Cell{{Text: rest, Colour: term.Faint}}})
			break
		}
		rows = append(rows, nodeRow("", report.NodeState{Name: short(tr.Reference), State: tr.State, Reason: string(tr.State), DoneBytes: tr.DoneBytes,
			TotalBytes: tr.TotalBytes, RateBytesPerSecond: tr.RateBytesPerSecond, Sources: tr.Sources}, terminal.Width))
	}
	return rows
}

// maxTransfers is how many transfers a status lists.
const maxTransfers = 12

// StatusLines are the status as it is shown once.
func StatusLines(terminal term.Terminal, s control.Judged) []string {
	t := statusTable(terminal, s)
	for _, tr := range s.Transfers[:min(len(s.Transfers), maxTransfers)] {
		parts := []string{fmt.Sprintf("%s  %s of %s", short(tr.Reference), term.Bytes(tr.DoneBytes), term.Bytes(tr.TotalBytes))}
		if rate := term.Rate(tr.RateBytesPerSecond); rate != "" {
			parts = append(parts, "at "+rate+",", term.Remaining(tr.DoneBytes, tr.TotalBytes, tr.RateBytesPerSecond))
		}
		if len(tr.Sources) > 0 {
			parts = append(parts, from(tr.Sources))
		}
		n := report.NodeState{State: tr.State, DoneBytes: tr.DoneBytes, TotalBytes: tr.TotalBytes}
		t.Add(term.Cell{Text: StateText(n), Colour: term.Faint}, term.Cell{Text: strings.Join(parts, " "), Colour: term.Yellow})
	}
	if more := len(s.Transfers) - maxTransfers; more > 0 {
		t.Add(term.Cell{}, term.Cell{Text: "… and " + term.Plural(more, "more image") + " on the way", Colour: term.Faint})
	}
	return t.Lines()
}

// maxFindings is how many of what is wrong a status lists.
const maxFindings = 6

func levelColour(l verdict.Level) string {
	return map[verdict.Level]string{verdict.Green: term.Green, verdict.Amber: term.Yellow, verdict.Red: term.Red}[l]
}

// awayMembers are the members that do not answer, each with since when.
func awayMembers(findings []verdict.Finding) (out []string) {
	for _, f := range findings {
		if f.About != verdict.AboutMember || f.Text != verdict.HasNotAnswered {
			continue
		}
		name := term.Clean(f.Subject)
		if !f.Since.IsZero() {
			name += " (since " + term.Clock(f.Since) + ")"
		}
		out = append(out, name)
	}
	return out
}

// statusTable is this node, without its transfers.
func statusTable(terminal term.Terminal, s control.Judged) *term.Table {
	t := &term.Table{Term: terminal}
	line := func(name, colour, format string, args ...any) {
		t.Add(term.Cell{Text: name, Colour: term.Faint}, term.Cell{Text: fmt.Sprintf(format, args...), Colour: colour})
	}
	for i, f := range s.Findings[:min(len(s.Findings), maxFindings)] {
		name := ""
		if i == 0 {
			name = string(s.Level)
		}
		line(name, levelColour(f.Level), "%s", term.Clean(f.String()))
		if f.Command != "" {
			line("", term.Faint, "  %s", term.Clean(f.Command))
		}
	}
	if more := len(s.Findings) - maxFindings; more > 0 {
		line("", term.Faint, "… and %d more: seeder doctor", more)
	}
	if len(s.Findings) == 0 {
		line(string(s.Level), levelColour(s.Level), "nothing is wrong")
	}
	line("node", "", "%s  %s  %s", term.Clean(s.Node), term.Clean(s.Version), term.Clean(s.ID))
	switch {
	case s.Containerd.OK:
		line("containerd", term.Green, "%s  %s", term.Clean(s.Containerd.Version), term.Clean(s.Containerd.Address))
	case s.Containerd.Reason == "":
		line("containerd", term.Yellow, "not asked yet")
	default:
		line("containerd", term.Red, "waiting: %s", term.Clean(s.Containerd.Reason))
	}
	colour, text := "", fmt.Sprintf("%d alive", s.Members)
	if away := awayMembers(s.Findings); len(away) > 0 {
		colour, text = term.Yellow, fmt.Sprintf("%s, %d away: %s", text, len(away), some(away, maxGroupNames))
	}
	line("members", colour, "%s", text)
	if !s.Join.OK {
		colour = term.Yellow
		if s.Join.Refused {
			colour = term.Red
		}
		line("join", colour, "failed: %s", term.Clean(s.Join.Reason))
	}
	colour, text = term.Green, ", converged"
	if !s.Converged {
		colour, text = term.Yellow, ", not converged"
	}
	if s.Level != verdict.Green { // converged is said of a node that is in its cluster
		colour = levelColour(s.Level)
		if !s.Join.OK {
			text = ""
		}
	}
	line("images", colour, "%d of %d ready%s", s.Images.Ready, s.Images.Total, text)
	noDeltaLines(s.NoDeltas, line)
	line("disk", "", "%s free", term.Bytes(s.Disk.FreeBytes))
	line("cache", "", "%s of at most %s, gives way when the disk fills up", term.Bytes(s.Disk.CacheBytes), term.Bytes(s.Disk.CacheLimitBytes))
	return t
}

// maxNoDeltas is how many images a status lists of which layers came whole.
const maxNoDeltas = 3

// noDeltaLines say why layers came whole, first of the images of which a delta failed.
func noDeltaLines(all []report.NoDelta, line func(name, colour, format string, args ...any)) {
	list := slices.DeleteFunc(slices.Clone(all), func(n report.NoDelta) bool { return !n.Failed })
	list = append(list, slices.DeleteFunc(slices.Clone(all), func(n report.NoDelta) bool { return n.Failed })...)
	for i, n := range list[:min(len(list), maxNoDeltas)] {
		name, colour, what := "", term.Faint, "came whole"
		if i == 0 {
			name = "deltas"
		}
		if n.Failed {
			colour, what = term.Yellow, "a delta failed"
		}
		line(name, colour, "%s: %s: %s", term.Clean(short(n.Reference)), what, term.Clean(n.Reason))
	}
	if more := len(list) - maxNoDeltas; more > 0 {
		line("", term.Faint, "… and %s: seeder status -o json", term.Plural(more, "more image"))
	}
}
