package show

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// view shows events, one call at a time.
type view interface {
	show(control.Event)
	nothing() // is announced
	close()   // there are no more
}

// jsonView writes each event as one line. A write that fails has no reader.
type jsonView struct{ enc *json.Encoder }

func (v jsonView) show(e control.Event) { _ = v.enc.Encode(e) }
func (v jsonView) nothing()             {}
func (v jsonView) close()               {}

const (
	// plainInterval is how often a fetch that goes on is worth a line.
	plainInterval = 5 * time.Second
	// maxPlainNodes is up to how many nodes each has lines of its own.
	maxPlainNodes = 12
)

// plainView writes a line whenever a node changes state; of many nodes, one for all of
// them now and then, and one for each that fails.
type plainView struct {
	w     io.Writer
	term  term.Terminal
	start time.Time
	cells map[string]plainCell // by reference and node, or reference alone
	sent  bool
	tally tally
}

func (v *plainView) nothing() { fmt.Fprintln(v.w, nothingLine) }

const nothingLine = "nothing is announced; on a host that has the image: seeder announce REF"

func (v *plainView) close() {
	for _, line := range v.tally.lines() {
		fmt.Fprintln(v.w, line)
	}
}

type plainCell struct {
	state report.State
	why   string // an import says how far it is
	at    time.Time
}

func (v *plainView) show(e control.Event) {
	switch e.Event {
	case control.EventSource:
		fmt.Fprintln(v.w, term.Clean(e.Reason))
	case control.EventSending:
		if !v.sent {
			fmt.Fprintln(v.w, strings.TrimSuffix(fmt.Sprintf("sending the image to the daemon (%s)", ofTotal(e)), " ()"))
		}
		v.sent = true
	case control.EventPreparing:
		fmt.Fprintf(v.w, "%s: preparing\n", short(e.Ref))
	case control.EventAnnounced:
		fmt.Fprintln(v.w, announcedLine(e, e.Digest))
		v.tally.announced(e)
	case control.EventProgress:
		v.progress(*e.Image, e.Time)
	case control.EventReady:
		v.tally.ready(e)
		if e.Already {
			return
		}
		fmt.Fprintln(v.w, readyLine(*e.Image, time.Since(v.start)))
	}
}

func (v *plainView) progress(img report.ImageState, now time.Time) {
	if len(img.Nodes) > maxPlainNodes {
		v.overview(img, now)
	}
	for _, n := range img.Nodes {
		key := img.Reference + " " + n.Name
		last, known := v.cells[key]
		goesOn := n.State == report.Fetching || n.State == report.Importing && n.Reason != last.why
		again := goesOn && now.Sub(last.at) >= plainInterval
		if known && last.state == n.State && !again {
			continue
		}
		if len(img.Nodes) > maxPlainNodes && n.State != report.Failed {
			delete(v.cells, key)
			continue
		}
		v.cells[key] = plainCell{n.State, n.Reason, now}
		how := []string{StateText(n)}
		for _, p := range []string{term.Rate(n.RateBytesPerSecond), left(n.DoneBytes, n.TotalBytes, n.RateBytesPerSecond)} {
			if p != "" {
				how = append(how, p)
			}
		}
		fmt.Fprintf(v.w, "%s on %s: %s%s\n", short(img.Reference), term.Clean(n.Name), strings.Join(how, ", "), because(n))
	}
}

// overview is one line for all nodes.
func (v *plainView) overview(img report.ImageState, now time.Time) {
	if last, known := v.cells[img.Reference]; known && now.Sub(last.at) < plainInterval {
		return
	}
	v.cells[img.Reference] = plainCell{at: now}
	line := imageLine(img)
	if rest := counts(img.Nodes, report.Ready); rest != "" {
		line += "; " + rest
	}
	fmt.Fprintln(v.w, line)
}

func announcedLine(e control.Event, dgst string) string {
	if e.Already {
		return fmt.Sprintf("%s: already announced as version %d by %s %s", short(e.Ref), e.Version, term.Clean(e.By), term.Ago(e.At))
	}
	return fmt.Sprintf("%s: announced as version %d, %s, %s", short(e.Ref), e.Version, term.Clean(dgst), term.Bytes(e.TotalBytes))
}

// ofTotal is the size of what is being sent, "" where it is not known.
func ofTotal(e control.Event) string {
	if e.TotalBytes == 0 {
		return ""
	}
	return term.Bytes(e.TotalBytes)
}

func readyLine(img report.ImageState, took time.Duration) string {
	return fmt.Sprintf("%s: version %d is ready on %s (%s)", short(img.Reference), img.Version, readyOf(img), took.Round(10*time.Millisecond))
}
