package term

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// BoardRow is one line of a board: columns that are aligned with those of the other
// rows, then a text that may take what room is left, or a bar with more columns. Its
// texts are clean.
type BoardRow struct {
	Key   string // tells the row from the others
	Lead  []Cell
	Text  []Cell // unless bar
	Bar   bool
	Done  int64
	Total int64
	Trail []Cell // behind the bar
}

// kind is the layout of a row.
func (r *BoardRow) kind() string { return fmt.Sprint(len(r.Lead), r.Bar, len(r.Trail)) }

// Board keeps rows up to date at the bottom of a terminal: mpb draws them. One
// goroutine uses it.
type Board struct {
	console  *console
	colour   Terminal
	progress *mpb.Progress
	refresh  chan any
	over     chan any // closed when mpb has ended: closed, or the terminal is gone
	lines    map[string]*boardLine
}

// boardLine is a row on the terminal.
type boardLine struct {
	bar   *mpb.Bar
	row   atomic.Pointer[BoardRow] // mpb reads it
	place int
}

// NewBoard returns a board on w, which asks term for the size before each frame.
func NewBoard(w io.Writer, term func() Terminal) *Board {
	b := &Board{colour: term(), refresh: make(chan any), over: make(chan any), lines: map[string]*boardLine{}}
	b.console = newConsole(w, func() (int, int) {
		t := term()
		return t.Width, t.Height
	})
	b.progress = mpb.New(mpb.WithConsoleWriter(b.console), mpb.WithManualRefresh(b.refresh), mpb.WithShutdownNotifier(b.over))
	return b
}

// Show replaces what the board shows.
func (b *Board) Show(rows []BoardRow) {
	shown := map[string]bool{}
	for i := range rows {
		row := &rows[i]
		key := row.Key + " " + row.kind()
		shown[key] = true
		line := b.lines[key]
		if line == nil {
			if line = b.add(row, i); line == nil {
				return // the terminal is gone
			}
			b.lines[key] = line
		}
		line.row.Store(row)
		if line.place != i {
			line.place = i
			line.bar.SetPriority(i)
		}
		if row.Bar {
			line.bar.SetTotal(row.Total, false)
			line.bar.SetCurrent(row.Done)
		}
	}
	dropped := false
	for key, line := range b.lines {
		if !shown[key] {
			line.bar.Abort(true)
			delete(b.lines, key)
			dropped = true
		}
	}
	if dropped {
		b.console.skip.Store(true) // mpb draws what it drops once more
		b.draw()
	}
	b.draw()
}

// draw returns when the frame is on the terminal.
func (b *Board) draw() {
	select {
	case <-b.console.flushed: // of a frame that nobody waited for
	default:
	}
	select {
	case b.refresh <- nil:
	case <-b.over:
		return
	}
	select {
	case <-b.console.flushed:
	case <-b.over:
	}
}

// Close leaves what is shown on the terminal, with the cursor below it.
func (b *Board) Close() {
	for _, line := range b.lines {
		line.bar.Abort(false)
	}
	b.progress.Wait()
}

// barWidth is the length of a bar where there is room for it.
const barWidth = 24

// add makes a line for rows like r, nil where mpb has ended. Its total is not known
// to mpb, which would end it when that is reached.
func (b *Board) add(r *BoardRow, place int) *boardLine {
	line := &boardLine{place: place}
	line.row.Store(r)
	columns := func(of func(*BoardRow) []Cell, n int) []decor.Decorator {
		var out []decor.Decorator
		for i := range n {
			text := decor.Any(func(decor.Statistics) string { return of(line.row.Load())[i].Text }, decor.WCSyncWidthR)
			out = append(out, decor.Meta(text, func(s string) string { return b.colour.Paint(of(line.row.Load())[i].Colour, s) }))
		}
		return out
	}
	filler := mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		room := st.AvailableWidth
		for _, c := range line.row.Load().Text {
			text := runewidth.Truncate(c.Text, room, "…")
			room -= runewidth.StringWidth(text)
			if _, err := io.WriteString(w, b.colour.Paint(c.Colour, text)); err != nil {
				return err
			}
		}
		return nil
	})
	options := []mpb.BarOption{
		mpb.BarPriority(place), mpb.BarFillerTrim(), mpb.BarWidth(barWidth),
		mpb.PrependDecorators(columns(func(r *BoardRow) []Cell { return r.Lead }, len(r.Lead))...),
		mpb.AppendDecorators(columns(func(r *BoardRow) []Cell { return r.Trail }, len(r.Trail))...),
	}
	var err error
	if r.Bar {
		style := mpb.BarStyle().Lbound("").Rbound("").Filler("█").Tip("").Padding("░")
		line.bar, err = b.progress.Add(0, style.Build(), options...)
	} else {
		line.bar, err = b.progress.Add(0, filler, options...)
	}
	if err != nil {
		return nil
	}
	return line
}
