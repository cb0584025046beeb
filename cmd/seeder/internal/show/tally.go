package show

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// tally gathers what the images of one command saved.
type tally struct {
	at      map[string]time.Time // when it was announced, by reference
	images  []tallied
	again   map[string]bool      // announced before this command, by reference
	already int                  // images that were ready before
	nodes   int                  // that the one of them has which has most
	blocked []string             // "app:v1 is ready on h2, but …"
	away    map[string]time.Time // nodes that were away when an image was ready, since when
}

type tallied struct {
	ref  string
	what control.Saved
	took time.Duration // 0: not announced by this command
}

func (t *tally) announced(e control.Event) {
	if e.Already { // nothing was saved by this command
		if t.again == nil {
			t.again = map[string]bool{}
		}
		t.again[e.Ref] = true
		return
	}
	if t.at == nil {
		t.at = map[string]time.Time{}
	}
	t.at[e.Ref] = e.Time
}

func (t *tally) ready(e control.Event) {
	for _, n := range e.Image.Nodes {
		if n.Blocked != "" && n.State == report.Ready && len(t.blocked) < maxReasons {
			line := fmt.Sprintf("%s is ready on %s, but %s", short(e.Ref), term.Clean(n.Name), term.Clean(n.Blocked))
			if !slices.Contains(t.blocked, line) {
				t.blocked = append(t.blocked, line)
			}
		}
		if n.Away && n.State != report.Excluded {
			if t.away == nil {
				t.away = map[string]time.Time{}
			}
			t.away[n.Name] = n.Since
		}
	}
	if e.Already {
		t.already++
		t.nodes = max(t.nodes, e.Image.Ready)
		return
	}
	if t.again[e.Ref] {
		return
	}
	x := tallied{ref: e.Ref}
	if e.Saved != nil {
		x.what = *e.Saved
	}
	// Both times are the daemon's. What was announced long ago took longer than this
	// command.
	if at, ok := t.at[e.Ref]; ok && at.Sub(e.Image.AnnouncedAt) < 2*time.Second {
		x.took = e.Time.Sub(at)
	}
	for i, old := range t.images {
		if old.ref == e.Ref {
			t.images[i] = x
			return
		}
	}
	t.images = append(t.images, x)
}

// maxTallied is how many images have lines of their own.
const maxTallied = 3

func (t *tally) lines() []string {
	var out []string
	switch {
	case t.already == 1:
		out = append(out, "1 image is ready on "+term.Plural(t.nodes, "node"))
	case t.already > 1:
		out = append(out, fmt.Sprintf("%d images are ready on %s", t.already, term.Plural(t.nodes, "node")))
	}
	for _, x := range last(t.images, maxTallied) {
		_, here := t.at[x.ref]
		for _, line := range SavedLines(x.what, x.took, here) {
			if len(t.images) > 1 {
				line = short(x.ref) + ": " + line
			}
			out = append(out, line)
		}
	}
	if more := len(t.images) - maxTallied; more > 0 {
		var fetched, local int64
		for _, x := range t.images {
			fetched, local = control.AddBytes(fetched, x.what.FetchedBytes), control.AddBytes(local, x.what.LocalBytes)
		}
		out = append(out, fmt.Sprintf("%d images: the nodes got %s from each other; %s were there already", len(t.images), term.Bytes(fetched), term.Bytes(local)))
	}
	for _, name := range slices.Sorted(maps.Keys(t.away)) {
		if len(t.away) > maxGroupNames {
			out = append(out, fmt.Sprintf("%d nodes are away; they get the images when they are back", len(t.away)))
			break
		}
		what := "the image"
		if len(t.images) > 1 {
			what = "the images"
		}
		out = append(out, fmt.Sprintf("%s has been away since %s; it gets %s when it is back", term.Clean(name), term.Clock(t.away[name]), what))
	}
	return append(out, t.blocked...)
}
