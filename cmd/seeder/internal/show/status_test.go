package show

import (
	"fmt"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// TestStatusSaysWhyNoDelta: it is said of which images layers came whole and why, of those
// first of which a delta failed; of many only how many there are.
func TestStatusSaysWhyNoDelta(t *testing.T) {
	t.Parallel()
	var s control.Judged
	lines := func() string { return strings.Join(StatusLines(term.Terminal{Width: 120}, s), "\n") }
	if out := lines(); strings.Contains(out, "deltas") {
		t.Errorf("nothing is to be said:\n%s", out)
	}
	s.NoDeltas = []report.NoDelta{{Reference: "docker.io/library/app:v1", Reason: "whole it is here in 1.0 s"},
		{Reference: "docker.io/library/app:v2", Reason: "the base is damaged\x1b[2J", Failed: true}}
	out := lines()
	want := "deltas      app:v2: a delta failed: the base is damaged?[2J\n            app:v1: came whole: whole it is here in 1.0 s\n"
	if !strings.Contains(out, want) {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
	for i := range 10 {
		s.NoDeltas = append(s.NoDeltas, report.NoDelta{Reference: fmt.Sprint("docker.io/library/other:", i), Reason: "because"})
	}
	if out := lines(); strings.Count(out, "came whole") != 2 || !strings.Contains(out, "… and 9 more images: seeder status -o json") {
		t.Errorf("printed\n%s", out)
	}
}
