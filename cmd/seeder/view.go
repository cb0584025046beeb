package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"seeder/p2p"
)

// view shows events, one call at a time.
type view interface{ show(event) }

// jsonView writes each event as one line. A write that fails has no reader.
type jsonView struct{ enc *json.Encoder }

func (v jsonView) show(e event) { _ = v.enc.Encode(e) }

// plainInterval is how often a fetch that goes on is worth a line.
const plainInterval = 5 * time.Second

// plainView writes a line whenever a node changes state.
type plainView struct {
	w     io.Writer
	start time.Time
	cells map[string]plainCell // by reference and node
	sent  bool
}

type plainCell struct {
	state p2p.State
	at    time.Time
}

func (v *plainView) show(e event) {
	switch e.Event {
	case eventSource:
		fmt.Fprintln(v.w, clean(e.Reason))
	case eventSending:
		if !v.sent {
			fmt.Fprintln(v.w, strings.TrimSuffix(fmt.Sprintf("sending the image to the daemon (%s)", ofTotal(e)), " ()"))
		}
		v.sent = true
	case eventPreparing:
		fmt.Fprintf(v.w, "%s: preparing\n", short(e.Ref))
	case eventAnnounced:
		fmt.Fprintln(v.w, announcedLine(e, e.Digest))
	case eventProgress:
		v.progress(*e.Image, e.Time)
	case eventReady:
		fmt.Fprintln(v.w, readyLine(*e.Image, time.Since(v.start)))
	}
}

func (v *plainView) progress(img p2p.ImageState, now time.Time) {
	for _, n := range img.Nodes {
		key := img.Reference + " " + n.Name
		last, known := v.cells[key]
		if known && last.state == n.State && (n.State != p2p.Fetching || now.Sub(last.at) < plainInterval) {
			continue
		}
		v.cells[key] = plainCell{n.State, now}
		fmt.Fprintf(v.w, "%s on %s: %s%s\n", short(img.Reference), clean(n.Name), stateText(n), because(n))
	}
}

func announcedLine(e event, dgst string) string {
	return fmt.Sprintf("%s: announced as version %d, %s, %s", short(e.Ref), e.Version, clean(dgst), size(e.TotalBytes))
}

func readyLine(img p2p.ImageState, took time.Duration) string {
	return fmt.Sprintf("%s: version %d is ready on %d of %d nodes (%s)", short(img.Reference), img.Version, img.Ready, img.Total, took.Round(10*time.Millisecond))
}

// liveView draws the nodes of each image over and over.
type liveView struct {
	screen screen
	start  time.Time
	why    string   // the source was chosen
	past   []string // what is announced
	now    string   // what is being done before
	refs   []string // in order of appearance
	rows   map[string]p2p.ImageState
}

func (v *liveView) show(e event) {
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
	case eventProgress:
		if _, known := v.rows[e.Image.Reference]; !known {
			v.refs = append(v.refs, e.Image.Reference)
		}
		v.rows[e.Image.Reference] = *e.Image
	case eventReady:
		v.rows[e.Image.Reference] = *e.Image
	}
	_ = v.screen.draw(v.lines(e.Event == eventDone)) // a terminal that is gone has no reader
}

// ofTotal is the size of what is being sent, "" where it is not known.
func ofTotal(e event) string {
	if e.TotalBytes == 0 {
		return ""
	}
	return size(e.TotalBytes)
}

// maxPast is how many announcements of one command a terminal shows.
const maxPast = 5

func last(lines []string, most int) []string { return lines[max(0, len(lines)-most):] }

// lines are at most as many as the terminal has, the unfinished ones first in
// line for the room.
func (v *liveView) lines(done bool) []string {
	term := v.screen.term
	var lines []string
	for _, h := range append(append([]string{v.why}, last(v.past, maxPast)...), v.now) {
		if h != "" {
			lines = append(lines, term.cut(h))
		}
	}
	room := max(term.height-len(lines)-3, 4)
	for _, ref := range v.refs {
		row := v.rows[ref]
		head := fmt.Sprintf("%s  ready on %d of %d nodes", short(ref), row.Ready, row.Total)
		if done {
			head = readyLine(row, time.Since(v.start))
		}
		colour := yellow
		if converged(row) {
			colour = green
		}
		lines, room = append(lines, term.paint(colour, term.cut(head))), room-1
		nodes := row.Nodes
		if len(nodes) > room {
			nodes = unfinished(nodes, max(room-1, 0))
		}
		lines = append(lines, liveTable(term, nodes).lines()...)
		if hidden := len(row.Nodes) - len(nodes); hidden > 0 {
			lines = append(lines, term.paint(faint, fmt.Sprintf("  … and %d more nodes", hidden)))
		}
		if room -= len(nodes); room < 2 {
			break
		}
	}
	return lines
}

// unfinished are up to most nodes that are not ready.
func unfinished(nodes []p2p.NodeState, most int) []p2p.NodeState {
	var out []p2p.NodeState
	for _, n := range nodes {
		if n.State != p2p.Ready && len(out) < most {
			out = append(out, n)
		}
	}
	return out
}

func liveTable(term terminal, nodes []p2p.NodeState) *table {
	t := &table{term: term}
	for _, n := range nodes {
		detail := strings.Trim(because(n), " ()")
		if n.State == p2p.Fetching {
			detail = fmt.Sprintf("%s  %s of %s", bar(n.DoneBytes, n.TotalBytes), size(n.DoneBytes), size(n.TotalBytes))
		}
		t.add(cell{"  " + clean(n.Name), ""}, cell{stateText(n), stateColour(n.State)}, cell{detail, ""})
	}
	return t
}

// bar is a progress bar of 24 characters.
func bar(done, total int64) string {
	const length = 24
	full := int(percent(done, total) * length / 100)
	return strings.Repeat("█", full) + strings.Repeat("░", length-full)
}
