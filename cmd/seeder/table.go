package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p"
)

// table lays out cells in columns. Colours belong to a cell apart from its text,
// so that they do not count as width.
type table struct {
	term terminal
	rows [][]cell
}

type cell struct{ text, colour string }

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

func (t *table) header(names ...string) {
	var row []cell
	for _, n := range names {
		row = append(row, cell{n, faint})
	}
	t.add(row...)
}

// widths is the width of each column, without the gap after it.
func (t *table) widths() []int {
	var w []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(w) {
				w = append(w, 0)
			}
			w[i] = max(w[i], runewidth.StringWidth(c.text))
		}
	}
	return w
}

const columnGap = 2

// width is that of the whole table.
func (t *table) width() int {
	sum := 0
	for _, w := range t.widths() {
		sum += w + columnGap
	}
	return max(sum-columnGap, 0)
}

// fits reports whether the terminal shows all of the table.
func (t *table) fits() bool { return t.term.width == 0 || t.width() < t.term.width }

// lines are the rows, each cut to the terminal's width.
func (t *table) lines() []string {
	widths := t.widths()
	var out []string
	for _, row := range t.rows {
		var b strings.Builder
		used := 0
		for i, c := range row {
			text := c.text
			if room := t.term.width - 1 - used; t.term.width > 0 && runewidth.StringWidth(text) > room {
				text = terminal{width: max(room+1, 2)}.cut(text)
			}
			b.WriteString(t.term.paint(c.colour, text))
			used += widths[i] + columnGap
			if i == len(row)-1 || (t.term.width > 0 && used >= t.term.width-1) {
				break
			}
			b.WriteString(strings.Repeat(" ", widths[i]-runewidth.StringWidth(text)+columnGap))
		}
		out = append(out, strings.TrimRight(b.String(), " "))
	}
	return out
}

func (t *table) print(w io.Writer) error {
	for _, line := range t.lines() {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func stateColour(s p2p.State) string {
	switch s {
	case p2p.Ready:
		return green
	case p2p.Fetching, p2p.Importing:
		return yellow
	case p2p.Failed, p2p.Unreachable:
		return red
	}
	return faint
}

// stateText is a state with its progress, as "fetching 43%".
func stateText(n p2p.NodeState) string {
	if n.State == p2p.Fetching {
		return fmt.Sprintf("%s %d%%", n.State, percent(n.DoneBytes, n.TotalBytes))
	}
	return clean(string(n.State))
}

// short is the short form of a reference that came from another node.
func short(ref string) string { return clean(cli.ShortRef(ref)) }
