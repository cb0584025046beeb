package dst

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
// fails, too: Zeller and Hildebrandt's delta debugging (ddmin, "Simplifying and Isolating
// Failure-Inducing Input", 2002), by whole rounds first, then by kinds and by hosts, and
// only then by single events: a course has hundreds of events, and a try takes seconds.
// It ends early when time is over.
func shrink(c Course, until time.Time, fails func(Course) bool) Course {
	events := flatten(c)
	for _, group := range []func(at int, p placed) any{
		func(_ int, p placed) any { return p.round },
		func(_ int, p placed) any { return p.event.Kind },
		func(_ int, p placed) any { return p.event.Node },
		func(at int, _ placed) any { return at },
	} {
		of := make([]any, len(events))
		var groups []any
		for at, p := range events {
			of[at] = group(at, p)
			if !slices.Contains(groups, of[at]) {
				groups = append(groups, of[at])
			}
		}
		all := events
		with := func(keep []any) (out []placed) {
			for at, p := range all {
				if slices.Contains(keep, of[at]) {
					out = append(out, p)
				}
			}
			return out
		}
		events = with(ddmin(groups, until, func(keep []any) bool { return fails(rebuilt(c, with(keep))) }))
	}
	return rebuilt(c, events)
}

// ddmin is a part of items from which nothing can be left out so that it still fails,
// or what it has come to when time is over. The last items are kept longest: what came
// before a failure is less often its cause.
func ddmin(items []any, until time.Time, fails func([]any) bool) []any {
	for parts := 2; len(items) > 1 && time.Now().Before(until); {
		size := (len(items) + parts - 1) / parts
		smaller := false
		for at := 0; at < len(items) && time.Now().Before(until); {
			rest := slices.Concat(items[:at], items[min(at+size, len(items)):])
			if len(rest) > 0 && fails(rest) {
				items, smaller = rest, true
				continue
			}
			at += size
		}
		if !smaller && size == 1 {
			break
		}
		parts = min(2*parts, len(items))
	}
	return items
}

// upTo is the beginning of a course with n events: those that happened before it failed.
func upTo(c Course, n int) Course {
	return rebuilt(c, flatten(c)[:min(n, c.Events())])
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
	var tries atomic.Int32
	fails := func(c Course) bool {
		// Not every run of a course is the same to the last packet: two runs, side by side.
		var failed [2]bool
		var wg sync.WaitGroup
		for i := range failed {
			wg.Go(func() {
				tries.Add(1)
				got := runCourse(t, c, "")
				failed[i] = slices.ContainsFunc(got.Violations, func(v string) bool { return class(v) == want })
			})
		}
		wg.Wait()
		return failed[0] || failed[1]
	}
	until := time.Now().Add(limit)
	short := c
	if cut := upTo(c, r.Begun); cut.Events() > 0 && cut.Events() < c.Events() && fails(cut) {
		short = cut
	}
	short = shrink(short, until, fails)
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
		c.Seed, short.Events(), c.Events(), again, tries.Load(), envReplay, path, b.String())
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
		tries := 0
		counted := func(c Course) bool { tries++; return fails(c) }
		got := shrink(c, time.Now().Add(time.Minute), counted)
		if got.Events() != 2 || !fails(got) {
			t.Errorf("seed %d: of %d events %d are left", seed, c.Events(), got.Events())
		}
		if most := 80; tries > most {
			t.Errorf("seed %d: it took %d tries for %d events, %d should do", seed, tries, c.Events(), most)
		}
	}
}
