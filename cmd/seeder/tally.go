package main

import (
	"fmt"
	"time"

	"seeder/cmd/seeder/internal/term"
)

// tally gathers what the images of one command saved.
type tally struct {
	at     map[string]time.Time // when it was announced, by reference
	images []tallied
}

type tallied struct {
	ref  string
	what saved
	took time.Duration // 0: not announced by this command
}

func (t *tally) announced(e event) {
	if t.at == nil {
		t.at = map[string]time.Time{}
	}
	t.at[e.Ref] = e.Time
}

func (t *tally) ready(e event) {
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
	for _, x := range last(t.images, maxTallied) {
		_, here := t.at[x.ref]
		for _, line := range x.what.lines(x.took, here) {
			if len(t.images) > 1 {
				line = short(x.ref) + ": " + line
			}
			out = append(out, line)
		}
	}
	if more := len(t.images) - maxTallied; more > 0 {
		var fetched, local int64
		for _, x := range t.images {
			fetched, local = add(fetched, x.what.FetchedBytes), add(local, x.what.LocalBytes)
		}
		out = append(out, fmt.Sprintf("%d images: the nodes got %s from each other; %s were there already", len(t.images), term.Bytes(fetched), term.Bytes(local)))
	}
	return out
}
