package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p"
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
	term  func() terminal // as it is now
	start time.Time

	mu    sync.Mutex
	why   string   // the source was chosen
	past  []string // what is announced
	now   string   // what is being done before
	refs  []string // in order of appearance
	rows  map[string]p2p.ImageState
	took  map[string]time.Duration // until it was ready
	tally tally

	board *board // made when there is something to show
	ended chan struct{}
	wg    sync.WaitGroup
}

func newLiveView(w io.Writer, term func() terminal) *liveView {
	return &liveView{w: w, term: term, start: time.Now(), rows: map[string]p2p.ImageState{}, took: map[string]time.Duration{},
		ended: make(chan struct{})}
}

func (v *liveView) show(e event) {
	v.note(e)
	if v.board != nil {
		return
	}
	v.board = newBoard(v.w, v.term)
	v.wg.Go(func() {
		tick := time.NewTicker(liveInterval)
		defer tick.Stop()
		for {
			v.board.show(v.boardRows())
			select {
			case <-tick.C:
			case <-v.ended:
				return
			}
		}
	})
}

// close leaves the last state on the terminal, and below it what was saved.
func (v *liveView) close() {
	close(v.ended)
	v.wg.Wait()
	if v.board == nil {
		return
	}
	v.board.show(v.boardRows())
	v.board.close()
	for _, line := range v.tally.lines() {
		for _, part := range wrap(line, v.term().width-1, 2) {
			fmt.Fprintln(v.w, part)
		}
	}
}

// note takes what an event says.
func (v *liveView) note(e event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Event {
	case eventSource:
		v.why = clean(e.Reason)
	case eventSending:
		v.now = "sending the image to the daemon: " + size(e.DoneBytes)
		if total := ofTotal(e); total != "" {
			v.now += " of " + total
		}
	case eventPreparing:
		v.now = fmt.Sprintf("%s: preparing", short(e.Ref))
	case eventAnnounced:
		v.past, v.now = append(v.past, announcedLine(e, cli.ShortDigest(e.Digest))), ""
		v.tally.announced(e)
	case eventProgress, eventReady:
		ref := e.Image.Reference
		if _, known := v.rows[ref]; !known {
			v.refs = append(v.refs, ref)
		}
		v.rows[ref] = *e.Image
		delete(v.took, ref)
		if e.Event == eventReady {
			v.took[ref] = time.Since(v.start)
			v.tally.ready(e)
		}
	}
}

// boardRows are at most as many as the terminal has room for, the unfinished ones
// first in line for it.
func (v *liveView) boardRows() []boardRow {
	v.mu.Lock()
	defer v.mu.Unlock()
	term := v.term()
	var rows []boardRow
	for i, h := range append(append([]string{v.why}, last(v.past, maxPast)...), v.now) {
		if h != "" {
			rows = append(rows, boardRow{key: fmt.Sprint("head ", i), text: []cell{{h, ""}}})
		}
	}
	room := max(term.height-len(rows)-2, 3)
	for i, ref := range v.refs {
		row := v.rows[ref]
		if room < 2 {
			rest := "… and " + plural(len(v.refs)-i, "more image")
			return append(rows, boardRow{key: "images", text: []cell{{rest, faint}}})
		}
		head := cell{imageLine(row), yellow}
		if took, ready := v.took[ref]; ready {
			head = cell{readyLine(row, took), green}
		}
		rows = append(rows, boardRow{key: "image " + ref, text: []cell{head}})
		nodes := nodeRows(ref, row.Nodes, term.width, room-1)
		rows, room = append(rows, nodes...), room-1-len(nodes)
	}
	return rows
}

func last[T any](list []T, most int) []T { return list[max(0, len(list)-most):] }

// imageLine is how far all nodes together are with an image.
func imageLine(row p2p.ImageState) string {
	var done, total, rate int64
	for _, n := range row.Nodes {
		if n.State != p2p.Excluded && n.State != p2p.Unreachable {
			done, total, rate = add(done, n.DoneBytes), add(total, n.TotalBytes), add(rate, n.RateBytesPerSecond)
		}
	}
	parts := []string{fmt.Sprintf("%s: ready on %d of %d nodes", short(row.Reference), row.Ready, row.Total)}
	if !converged(row) && total > 0 {
		parts = append(parts, fmt.Sprintf("%d%%", percent(done, total)))
	}
	for _, p := range []string{speed(rate), left(done, total, rate)} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ", ")
}

// nodeRows are the nodes of an image on a terminal so wide, in at most as many rows.
// Where each has one they stay in their order. Else those in trouble come first, all with
// the same reason in one row, then those that are fetching.
func nodeRows(ref string, nodes []p2p.NodeState, width, room int) []boardRow {
	var rows []boardRow
	if len(nodes) <= room {
		for _, n := range nodes {
			rows = append(rows, nodeRow(ref, n, width))
		}
		return rows
	}
	room-- // for the rest
	shown := map[string]bool{}
	show := func(row boardRow, nodes ...p2p.NodeState) {
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
		case g.state == p2p.Fetching, g.state == p2p.Ready:
		case len(g.nodes) == 1:
			show(nodeRow(ref, g.nodes[0], width), g.nodes...)
		default:
			show(boardRow{key: "group " + ref + " " + g.text() + g.why,
				lead: []cell{{"  " + plural(len(g.nodes), "node") + "  ", ""}, {g.text() + "  ", stateColour(g.state)}},
				text: []cell{{g.why, ""}}}, g.nodes...)
		}
	}
	for _, g := range all {
		if g.state == p2p.Fetching {
			for _, n := range g.nodes {
				show(nodeRow(ref, n, width), n)
			}
		}
	}
	hidden := slices.DeleteFunc(slices.Clone(nodes), func(n p2p.NodeState) bool { return shown[n.Name] })
	if len(hidden) > 0 {
		rows = append(rows, boardRow{key: "more " + ref, text: []cell{{"  … and " + counts(hidden), faint}}})
	}
	return rows
}

// nodeRow is a node of an image on a terminal so wide. Where that is narrow, what
// the bar says already goes first.
func nodeRow(ref string, n p2p.NodeState, width int) boardRow {
	r := boardRow{key: "node " + ref + " " + n.Name,
		lead: []cell{{"  " + clean(n.Name) + "  ", ""}, {stateText(n) + "  ", stateColour(n.State)}}}
	switch {
	case n.State == p2p.Ready && len(n.Sources) > 0:
		r.text = []cell{{size(n.TotalBytes) + " " + from(n.Sources), ""}}
	case n.State == p2p.Ready:
	case n.State != p2p.Fetching:
		r.text = []cell{{reasonOf(n), ""}}
	default:
		r.bar, r.done, r.total = true, n.DoneBytes, n.TotalBytes
		r.trail = trailOf(n, width-runewidth.StringWidth(r.lead[0].text+r.lead[1].text))
	}
	return r
}

// minBar is what columns behind a bar leave of it.
const minBar = 8

// leastFrom is the least room for where bytes come from.
const leastFrom = 14

// trailOf is what stands behind the bar of a node that is fetching, as far as there is
// room for it: the rate, the time left, where the bytes come from, how many of how many.
func trailOf(n p2p.NodeState, room int) []cell {
	room -= minBar
	var out []cell
	take := func(text string, least, leave int) bool {
		w := max(runewidth.StringWidth(text), least) + 2
		if room < w+leave {
			return false
		}
		room -= w
		out = append(out, cell{"  " + text, ""})
		return true
	}
	if !take(speed(n.RateBytesPerSecond), len("99.9 MiB/s"), 0) ||
		!take(left(n.DoneBytes, n.TotalBytes, n.RateBytesPerSecond), len("59s left"), 0) {
		return out
	}
	take(size(n.DoneBytes)+" of "+size(n.TotalBytes), 0, leastFrom+2)
	whence := from(n.Sources)
	if n.RateBytesPerSecond == 0 {
		whence = reasonOf(n) // why nothing comes
	}
	if room >= leastFrom+2 {
		out = append(out, cell{"  " + cutTo(whence, room-2), ""})
	}
	return out
}

// reasonOf is why a node is not ready, "" where it says no more than the state.
func reasonOf(n p2p.NodeState) string {
	return strings.TrimSuffix(strings.TrimPrefix(because(n), " ("), ")")
}

// cutTo shortens s to so many columns, unless that is none.
func cutTo(s string, width int) string {
	if width <= 0 {
		return s
	}
	return terminal{width: width + 1}.cut(s)
}

// urgency orders the states that somebody waits to end; of others it is -1.
func urgency(s p2p.State) int {
	return slices.Index([]p2p.State{p2p.Failed, p2p.Unreachable, p2p.Fetching, p2p.Importing, p2p.Waiting}, s)
}

// counts says how many nodes are in which state, without those in states that are
// left out.
func counts(nodes []p2p.NodeState, without ...p2p.State) string {
	by := map[p2p.State]int{}
	for _, n := range nodes {
		by[n.State]++
	}
	var parts []string
	for _, s := range []p2p.State{p2p.Ready, p2p.Fetching, p2p.Importing, p2p.Waiting, p2p.Failed, p2p.Unreachable, p2p.Excluded} {
		if by[s] > 0 && !slices.Contains(without, s) {
			parts = append(parts, fmt.Sprintf("%d %s", by[s], s))
		}
	}
	return strings.Join(parts, ", ")
}
