package dst

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// placed is an event and the round that it is in.
type placed struct {
	round int
	event Event
}

func flatten(c Course) (out []placed) {
	for k, r := range c.Rounds {
		for _, e := range r {
			out = append(out, placed{k, e})
		}
	}
	return out
}

// rebuilt is c with these events alone. Rounds without any are left out.
func rebuilt(c Course, events []placed) Course {
	out := Course{Seed: c.Seed, Nodes: c.Nodes}
	last := -1
	for _, p := range events {
		if p.round != last {
			out.Rounds = append(out.Rounds, nil)
			last = p.round
		}
		at := len(out.Rounds) - 1
		out.Rounds[at] = append(out.Rounds[at], p.event)
	}
	return out
}

// shrink takes events out of a course that fails, as long as fails says that the rest
// fails, too: Zeller and Hildebrandt's delta debugging (ddmin), after the try with the
// last rounds alone. It ends early when time is over.
func shrink(c Course, until time.Time, fails func(Course) bool) Course {
	events := flatten(c)
	for k := len(c.Rounds) - 1; k > 0; k-- { // what came before may not matter
		tail := slices.DeleteFunc(slices.Clone(events), func(p placed) bool { return p.round < k })
		if time.Now().After(until) || fails(rebuilt(c, tail)) {
			events = tail
			break
		}
		if k < len(c.Rounds)-2 {
			break
		}
	}
	for parts := 2; len(events) > 1 && time.Now().Before(until); {
		size := (len(events) + parts - 1) / parts
		smaller := false
		for at := 0; at < len(events) && time.Now().Before(until); {
			rest := slices.Concat(events[:at], events[min(at+size, len(events)):])
			if len(rest) > 0 && fails(rebuilt(c, rest)) {
				events, smaller = rest, true
				continue
			}
			at += size
		}
		if !smaller && size == 1 {
			break
		}
		parts = min(2*parts, len(events))
	}
	return rebuilt(c, events)
}

// differs are the parts of a violation that are others in each run.
var differs = regexp.MustCompile(`[0-9a-f]{8,}|[0-9.]+[a-zµ]*s\b|[0-9]+|/[^ ]*`)

// class says which kind of violation it is.
func class(violation string) string {
	_, text, _ := strings.Cut(violation, ": ")
	text = differs.ReplaceAllString(text, "#")
	return text[:min(len(text), 60)]
}

// shorten finds the shortest course that still fails in the same way, writes it where it
// can be run again from, and says how often it fails.
func shorten(t *testing.T, c Course, r Result, limit time.Duration) {
	t.Helper()
	want := class(r.Violations[0])
	tries := 0
	fails := func(c Course) bool {
		for range 2 { // not every run of a course is the same to the last packet
			tries++
			got := runCourse(t, c, "")
			if slices.ContainsFunc(got.Violations, func(v string) bool { return class(v) == want }) {
				return true
			}
		}
		return false
	}
	short := shrink(c, time.Now().Add(limit), fails)
	again := 0
	for range 5 {
		if r := runCourse(t, short, ""); len(r.Violations) > 0 {
			again++
		}
	}
	var b strings.Builder
	for k, round := range short.Rounds {
		fmt.Fprintf(&b, "round %d\n", k)
		for _, e := range round {
			fmt.Fprintf(&b, "  %s\n", e)
		}
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("seeder-dst-%d.json", c.Seed))
	if err := os.WriteFile(path, encode(short), 0o600); err != nil {
		t.Errorf("write the shortest course: %v", err)
	}
	t.Errorf("seed %d: %d of %d events still fail, %d of 5 times (%d runs to find out); %s=%s runs them again:\n%s",
		c.Seed, short.Events(), c.Events(), again, tries, envReplay, path, b.String())
}

// TestShrink: of a course that fails by two of its events these two are left.
func TestShrink(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		c := draw(seed, 3)
		all := flatten(c)
		one, two := all[len(all)/3].event, all[len(all)-2].event
		fails := func(c Course) bool {
			found := 0
			for _, p := range flatten(c) {
				if p.event == one || p.event == two {
					found++
				}
			}
			return found == 2
		}
		if got := shrink(c, time.Now().Add(time.Minute), fails); got.Events() != 2 || !fails(got) {
			t.Errorf("seed %d: of %d events %d are left", seed, c.Events(), got.Events())
		}
	}
}
