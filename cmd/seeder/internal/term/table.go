package term

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
)

// Table lays out cells in columns. Colours belong to a cell apart from its text,
// so that they do not count as width.
type Table struct {
	Term Terminal
	Rows [][]Cell
}

// Cell is clean text with one of the colours, or none.
type Cell struct{ Text, Colour string }

// Add appends a row.
func (t *Table) Add(cells ...Cell) { t.Rows = append(t.Rows, cells) }

// Header appends a row of column names.
func (t *Table) Header(names ...string) {
	var row []Cell
	for _, n := range names {
		row = append(row, Cell{n, Faint})
	}
	t.Add(row...)
}

// widths is the width of each column, without the gap after it.
func (t *Table) widths() []int {
	var w []int
	for _, row := range t.Rows {
		for i, c := range row {
			if i == len(w) {
				w = append(w, 0)
			}
			w[i] = max(w[i], runewidth.StringWidth(c.Text))
		}
	}
	return w
}

const columnGap = 2

// width is that of the whole table.
func (t *Table) width() int {
	sum := 0
	for _, w := range t.widths() {
		sum += w + columnGap
	}
	return max(sum-columnGap, 0)
}

// Fits reports whether the terminal shows all of the table.
func (t *Table) Fits() bool { return t.Term.Width == 0 || t.width() < t.Term.Width }

// Lines are the rows, each cut to the terminal's width.
func (t *Table) Lines() []string {
	widths := t.widths()
	var out []string
	for _, row := range t.Rows {
		var b strings.Builder
		used := 0
		for i, c := range row {
			text := c.Text
			if room := t.Term.Width - 1 - used; t.Term.Width > 0 && runewidth.StringWidth(text) > room {
				text = Terminal{Width: max(room+1, 2)}.Cut(text)
			}
			b.WriteString(t.Term.Paint(c.Colour, text))
			used += widths[i] + columnGap
			if i == len(row)-1 || (t.Term.Width > 0 && used >= t.Term.Width-1) {
				break
			}
			b.WriteString(strings.Repeat(" ", widths[i]-runewidth.StringWidth(text)+columnGap))
		}
		out = append(out, strings.TrimRight(b.String(), " "))
	}
	return out
}

// Print writes the lines of the table to w.
func (t *Table) Print(w io.Writer) error {
	for _, line := range t.Lines() {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
