package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

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
		v.past, v.now = append(v.past, announcedLine(e, shortDigest(e.Digest))), ""
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
			rest := fmt.Sprintf("… and %d more images", len(v.refs)-i)
			return append(rows, boardRow{key: "images", text: []cell{{rest, faint}}})
		}
		head := cell{imageLine(row), yellow}
		if took, ready := v.took[ref]; ready {
			head = cell{readyLine(row, took), green}
		}
		rows = append(rows, boardRow{key: "image " + ref, text: []cell{head}})
		room--
		nodes := row.Nodes
		if len(nodes) > room {
			nodes = unfinished(nodes, room-1)
		}
		for _, n := range nodes {
			rows = append(rows, nodeRow(ref, n, term.width))
		}
		room -= len(nodes)
		if hidden := hiddenNodes(row.Nodes, nodes); len(hidden) > 0 {
			rest := fmt.Sprintf("  … and %s more: %s", plural(len(hidden), "node"), counts(hidden))
			rows = append(rows, boardRow{key: "more " + ref, text: []cell{{rest, faint}}})
			room--
		}
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
		bytes := cell{"  " + size(n.DoneBytes) + " of " + size(n.TotalBytes), ""}
		r.trail = []cell{{"  " + speed(n.RateBytesPerSecond), ""}, {"  " + left(n.DoneBytes, n.TotalBytes, n.RateBytesPerSecond), ""}}
		whence := from(n.Sources)
		if n.RateBytesPerSecond == 0 {
			whence = reasonOf(n)
		}
		switch {
		case width >= 110 || width == 0:
			r.trail = append([]cell{bytes}, append(r.trail, cell{"  " + cutTo(whence, width-85), ""})...)
		case width >= 80:
			r.trail = append([]cell{bytes}, r.trail...)
		case width < 50:
			r.trail = r.trail[:1]
		}
	}
	return r
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

// urgency orders states for a terminal that has no room for all.
func urgency(s p2p.State) int {
	return slices.Index([]p2p.State{p2p.Failed, p2p.Unreachable, p2p.Fetching, p2p.Importing, p2p.Waiting}, s)
}

// unfinished are up to most nodes that are waited for, the most urgent ones, by
// their place in nodes.
func unfinished(nodes []p2p.NodeState, most int) []p2p.NodeState {
	var out []p2p.NodeState
	for _, n := range nodes {
		if urgency(n.State) >= 0 {
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b p2p.NodeState) int { return cmp.Compare(urgency(a.State), urgency(b.State)) })
	return out[:min(len(out), max(most, 0))]
}

// hiddenNodes are those of all that are not shown.
func hiddenNodes(all, shown []p2p.NodeState) []p2p.NodeState {
	seen := map[string]bool{}
	for _, n := range shown {
		seen[n.Name] = true
	}
	var out []p2p.NodeState
	for _, n := range all {
		if !seen[n.Name] {
			out = append(out, n)
		}
	}
	return out
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
