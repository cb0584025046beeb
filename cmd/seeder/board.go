package main

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// boardRow is one line of a board: columns that are aligned with those of the other
// rows, then a text that may take what room is left, or a bar with more columns. Its
// texts are clean.
type boardRow struct {
	key   string // tells the row from the others
	lead  []cell
	text  []cell // unless bar
	bar   bool
	done  int64
	total int64
	trail []cell // behind the bar
}

// kind is the layout of a row.
func (r *boardRow) kind() string { return fmt.Sprint(len(r.lead), r.bar, len(r.trail)) }

// board keeps rows up to date at the bottom of a terminal: mpb draws them. One
// goroutine uses it.
type board struct {
	console  *console
	colour   terminal
	progress *mpb.Progress
	refresh  chan any
	over     chan any // closed when mpb has ended: closed, or the terminal is gone
	lines    map[string]*boardLine
}

// boardLine is a row on the terminal.
type boardLine struct {
	bar   *mpb.Bar
	row   atomic.Pointer[boardRow] // mpb reads it
	place int
}

func newBoard(w io.Writer, term func() terminal) *board {
	b := &board{colour: term(), refresh: make(chan any), over: make(chan any), lines: map[string]*boardLine{}}
	b.console = newConsole(w, func() (int, int) {
		t := term()
		return t.width, t.height
	})
	b.progress = mpb.New(mpb.WithConsoleWriter(b.console), mpb.WithManualRefresh(b.refresh), mpb.WithShutdownNotifier(b.over))
	return b
}

// show replaces what the board shows.
func (b *board) show(rows []boardRow) {
	shown := map[string]bool{}
	for i := range rows {
		row := &rows[i]
		key := row.key + " " + row.kind()
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
		if row.bar {
			line.bar.SetTotal(row.total, false)
			line.bar.SetCurrent(row.done)
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
func (b *board) draw() {
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

// close leaves what is shown on the terminal, with the cursor below it.
func (b *board) close() {
	for _, line := range b.lines {
		line.bar.Abort(false)
	}
	b.progress.Wait()
}

// barWidth is the length of a bar where there is room for it.
const barWidth = 24

// add makes a line for rows like r, nil where mpb has ended. Its total is not known
// to mpb, which would end it when that is reached.
func (b *board) add(r *boardRow, place int) *boardLine {
	line := &boardLine{place: place}
	line.row.Store(r)
	columns := func(of func(*boardRow) []cell, n int) []decor.Decorator {
		var out []decor.Decorator
		for i := range n {
			text := decor.Any(func(decor.Statistics) string { return of(line.row.Load())[i].text }, decor.WCSyncWidthR)
			out = append(out, decor.Meta(text, func(s string) string { return b.colour.paint(of(line.row.Load())[i].colour, s) }))
		}
		return out
	}
	filler := mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		room := st.AvailableWidth
		for _, c := range line.row.Load().text {
			text := runewidth.Truncate(c.text, room, "…")
			room -= runewidth.StringWidth(text)
			if _, err := io.WriteString(w, b.colour.paint(c.colour, text)); err != nil {
				return err
			}
		}
		return nil
	})
	options := []mpb.BarOption{
		mpb.BarPriority(place), mpb.BarFillerTrim(), mpb.BarWidth(barWidth),
		mpb.PrependDecorators(columns(func(r *boardRow) []cell { return r.lead }, len(r.lead))...),
		mpb.AppendDecorators(columns(func(r *boardRow) []cell { return r.trail }, len(r.trail))...),
	}
	var err error
	if r.bar {
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
