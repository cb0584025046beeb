package show

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

const (
	// liveInterval is how often a terminal is drawn.
	liveInterval = 150 * time.Millisecond
	// maxPast is how many announcements of one command a terminal shows.
	maxPast = 5
)

// liveView keeps the nodes of each image up to date on a terminal.
type liveView struct {
	w     io.Writer
	term  func() term.Terminal // as it is now
	start time.Time

	mu    sync.Mutex
	why   string   // the source was chosen
	past  []string // what is announced
	now   string   // what is being done before
	refs  []string // in order of appearance
	rows  map[string]report.ImageState
	took  map[string]time.Duration // until it was ready
	tally tally

	board *term.Board // made when there is something to show
	ended chan struct{}
	wg    sync.WaitGroup
}

func newLiveView(w io.Writer, terminal func() term.Terminal) *liveView {
	return &liveView{w: w, term: terminal, start: time.Now(), rows: map[string]report.ImageState{}, took: map[string]time.Duration{},
		ended: make(chan struct{})}
}

func (v *liveView) show(e control.Event) {
	v.record(e)
	if v.board != nil || e.Event == control.EventDone || e.Event == control.EventReady && e.Already {
		return
	}
	v.board = term.NewBoard(v.w, v.term)
	v.wg.Go(func() {
		tick := time.NewTicker(liveInterval)
		defer tick.Stop()
		for {
			v.board.Show(v.boardRows())
			select {
			case <-tick.C:
			case <-v.ended:
				return
			}
		}
	})
}

func (v *liveView) nothing() { fmt.Fprintln(v.w, nothingLine) }

// close leaves the last state on the terminal, and below it what was saved.
func (v *liveView) close() {
	close(v.ended)
	v.wg.Wait()
	if v.board == nil {
		for _, line := range v.tally.lines() {
			fmt.Fprintln(v.w, line)
		}
		return
	}
	v.board.Show(v.boardRows())
	v.board.Close()
	for _, line := range v.tally.lines() {
		for _, part := range term.Wrap(line, v.term().Width-1, 2) {
			fmt.Fprintln(v.w, part)
		}
	}
}

// record takes what an event says.
func (v *liveView) record(e control.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Event {
	case control.EventSource:
		v.why = term.Clean(e.Reason)
	case control.EventSending:
		v.now = "sending the image to the daemon: " + term.Bytes(e.DoneBytes)
		if total := ofTotal(e); total != "" {
			v.now += " of " + total
		}
	case control.EventPreparing:
		v.now = fmt.Sprintf("%s: preparing", short(e.Ref))
	case control.EventAnnounced:
		v.past, v.now = append(v.past, announcedLine(e, cli.ShortDigest(e.Digest))), ""
		v.tally.announced(e)
	case control.EventProgress, control.EventReady:
		if e.Already {
			v.tally.ready(e)
			return
		}
		ref := e.Image.Reference
		if _, known := v.rows[ref]; !known {
			v.refs = append(v.refs, ref)
		}
		v.rows[ref] = *e.Image
		delete(v.took, ref)
		if e.Event == control.EventReady {
			v.took[ref] = time.Since(v.start)
			v.tally.ready(e)
		}
	}
}

// boardRows are at most as many as the terminal has room for, the unfinished ones
// first in line for it.
func (v *liveView) boardRows() []term.BoardRow {
	v.mu.Lock()
	defer v.mu.Unlock()
	terminal := v.term()
	var rows []term.BoardRow
	for i, h := range append(append([]string{v.why}, last(v.past, maxPast)...), v.now) {
		if h != "" {
			rows = append(rows, term.BoardRow{Key: fmt.Sprint("head ", i), Text: []term.Cell{{Text: h}}})
		}
	}
	room := max(terminal.Height-len(rows)-2, 3)
	for i, ref := range v.refs {
		row := v.rows[ref]
		if room < 2 {
			rest := "… and " + term.Plural(len(v.refs)-i, "more image")
			return append(rows, term.BoardRow{Key: "images", Text: []term.Cell{{Text: rest, Colour: term.Faint}}})
		}
		head := term.Cell{Text: imageLine(row), Colour: term.Yellow}
		if took, ready := v.took[ref]; ready {
			head = term.Cell{Text: readyLine(row, took), Colour: term.Green}
		}
		if terminal.Width > 0 && runewidth.StringWidth(head.Text) >= terminal.Width { // how far it is must not be cut off
			name := short(row.Reference)
			rows = append(rows, term.BoardRow{Key: "name " + ref, Text: []term.Cell{{Text: term.Middle(name, terminal.Width-1)}}})
			head.Text = strings.TrimPrefix(head.Text, name+": ")
			room--
		}
		rows = append(rows, term.BoardRow{Key: "image " + ref, Text: []term.Cell{head}})
		nodes := nodeRows(ref, row.Nodes, terminal.Width, room-1)
		rows, room = append(rows, nodes...), room-1-len(nodes)
	}
	return rows
}

func last[T any](list []T, most int) []T { return list[max(0, len(list)-most):] }

// readyOf is "2 of 3 nodes", with how many are away.
func readyOf(row report.ImageState) string {
	of := fmt.Sprintf("%d of %d nodes", row.Ready, row.Total)
	if row.Away > 0 {
		of += fmt.Sprintf(" (%d away)", row.Away)
	}
	return of
}

// imageLine is how far all nodes together are with an image.
func imageLine(row report.ImageState) string {
	var done, total, rate int64
	for _, n := range row.Nodes {
		if n.State != report.Excluded && !n.Away && n.Name != row.AnnouncedBy { // which has had it all along
			done, total, rate = control.AddBytes(done, n.DoneBytes), control.AddBytes(total, n.TotalBytes), control.AddBytes(rate, n.RateBytesPerSecond)
		}
	}
	parts := []string{fmt.Sprintf("%s: ready on %s", short(row.Reference), readyOf(row))}
	switch {
	case control.Converged(row) || total == 0:
	case onlyUnpacks(row):
		parts = append(parts, "unpacking")
	default:
		parts = append(parts, fmt.Sprintf("%d%%", min(term.Percent(done, total), 99))) // 100 % is ready
	}
	for _, p := range []string{left(done, total, rate), term.Rate(rate)} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ", ")
}

// left is the time until every byte is here, which is not yet that until the nodes are ready.
func left(done, total, rate int64) string {
	if s := term.Remaining(done, total, rate); s != "" {
		return s + ", then unpacking"
	}
	return ""
}

// onlyUnpacks reports whether nothing is waited for but that nodes unpack what they have.
func onlyUnpacks(row report.ImageState) bool {
	unpacks := false
	for _, n := range row.Nodes {
		switch {
		case n.Away, n.State == report.Ready, n.State == report.Excluded:
		case n.State == report.Importing:
			unpacks = true
		default:
			return false
		}
	}
	return unpacks
}

// nodeRows are the nodes of an image on a terminal so wide, in at most as many rows.
// Where each has one they stay in their order. Else those in trouble come first, all with
// the same reason in one row, then those that are fetching.
func nodeRows(ref string, nodes []report.NodeState, width, room int) []term.BoardRow {
	var rows []term.BoardRow
	if len(nodes) <= room {
		for _, n := range nodes {
			rows = append(rows, nodeRow(ref, n, width))
		}
		return rows
	}
	room-- // for the rest
	shown := map[string]bool{}
	show := func(row term.BoardRow, nodes ...report.NodeState) {
		if len(rows) >= room {
			return
		}
		for _, n := range nodes {
			shown[n.Name] = true
		}
		rows = append(rows, row)
	}
	all := groups(nodes)
	for _, g := range all {
		switch {
		case g.state == report.Fetching, g.state == report.Ready:
		case len(g.nodes) == 1:
			show(nodeRow(ref, g.nodes[0], width), g.nodes...)
		default:
			show(term.BoardRow{Key: "group " + ref + " " + g.text() + g.why,
				Lead: []term.Cell{{Text: "  " + term.Plural(len(g.nodes), "node") + "  "}, {Text: g.text() + "  ", Colour: stateColour(g.state)}},
				Text: []term.Cell{{Text: g.why}}}, g.nodes...)
		}
	}
	for _, g := range all {
		if g.state == report.Fetching {
			for _, n := range g.nodes {
				show(nodeRow(ref, n, width), n)
			}
		}
	}
	hidden := slices.DeleteFunc(slices.Clone(nodes), func(n report.NodeState) bool { return shown[n.Name] })
	if len(hidden) > 0 {
		rows = append(rows, term.BoardRow{Key: "more " + ref, Text: []term.Cell{{Text: "  … and " + counts(hidden), Colour: term.Faint}}})
	}
	return rows
}

// nodeRow is a node of an image on a terminal so wide. Where that is narrow, what
// the bar says already goes first.
func nodeRow(ref string, n report.NodeState, width int) term.BoardRow {
	r := term.BoardRow{Key: "node " + ref + " " + n.Name,
		Lead: []term.Cell{{Text: "  " + term.Clean(n.Name) + "  "}, {Text: StateText(n) + "  ", Colour: stateColour(n.State)}}}
	switch {
	case n.State == report.Ready && len(n.Sources) > 0:
		r.Text = []term.Cell{{Text: term.Bytes(n.TotalBytes) + " " + from(n.Sources)}}
	case n.State == report.Ready:
	case n.State != report.Fetching:
		r.Text = []term.Cell{{Text: reasonOf(n)}}
	default:
		r.Bar, r.Done, r.Total = true, n.DoneBytes, n.TotalBytes
		r.Trail = trailOf(n, width-runewidth.StringWidth(r.Lead[0].Text+r.Lead[1].Text))
	}
	return r
}

// minBar is what columns behind a bar leave of it.
const minBar = 8

// leastFrom is the least room for where bytes come from.
const leastFrom = 14

// trailOf is what stands behind the bar of a node that is fetching, as far as there is
// room for it: the rate, the time left, where the bytes come from, how many of how many.
func trailOf(n report.NodeState, room int) []term.Cell {
	room -= minBar
	var out []term.Cell
	take := func(text string, least, leave int) bool {
		w := max(runewidth.StringWidth(text), least) + 2
		if room < w+leave {
			return false
		}
		room -= w
		out = append(out, term.Cell{Text: "  " + text})
		return true
	}
	if !take(term.Rate(n.RateBytesPerSecond), len("99.9 MiB/s"), 0) ||
		!take(term.Remaining(n.DoneBytes, n.TotalBytes, n.RateBytesPerSecond), len("59s left"), 0) {
		return out
	}
	take(term.Bytes(n.DoneBytes)+" of "+term.Bytes(n.TotalBytes), 0, leastFrom+2)
	whence := from(n.Sources)
	if n.RateBytesPerSecond == 0 {
		whence = reasonOf(n) // why nothing comes
	}
	if room >= leastFrom+2 {
		out = append(out, term.Cell{Text: "  " + cutTo(whence, room-2)})
	}
	return out
}

// reasonOf is why a node is not ready, "" where it says no more than the state.
func reasonOf(n report.NodeState) string {
	return strings.TrimSuffix(strings.TrimPrefix(because(n), " ("), ")")
}

// cutTo shortens s to so many columns, unless that is none.
func cutTo(s string, width int) string {
	if width <= 0 {
		return s
	}
	return term.Terminal{Width: width + 1}.Cut(s)
}

// urgency orders the states that somebody waits to end; of others it is -1.
func urgency(s report.State) int {
	return slices.Index([]report.State{report.Failed, report.Unreachable, report.Fetching, report.Importing, report.Waiting}, s)
}

// counts says how many nodes are in which state, without those in states that are
// left out.
func counts(nodes []report.NodeState, without ...report.State) string {
	by := map[report.State]int{}
	for _, n := range nodes {
		by[n.State]++
	}
	var parts []string
	for _, s := range []report.State{report.Ready, report.Fetching, report.Importing, report.Waiting, report.Failed, report.Unreachable, report.Excluded} {
		if by[s] > 0 && !slices.Contains(without, s) {
			parts = append(parts, fmt.Sprintf("%d %s", by[s], s))
		}
	}
	return strings.Join(parts, ", ")
}
