package converge

import (
	"fmt"
	"testing"
	"time"
)

var t0 = time.Unix(1_800_000_000, 0)

// after says what next made of a task: its state, when a job may begin, and what to do.
func after(t task, do action) string {
	out := t.state.String()
	if t.running {
		out += ", job"
	}
	if d, ever := t.wait(t0); ever && d > 0 {
		out += fmt.Sprintf(", in %s", d)
	} else if ever {
		out += ", now"
	}
	if do != doNothing {
		out += ": " + []string{"", "start", "cancel", "drop"}[do]
	}
	return out
}

// TestEveryPair is the table: what each event makes of each state, without a job that
// runs and with one. A task waits for a minute; a "-" says that nothing changes.
func TestEveryPair(t *testing.T) {
	events := []eventKind{announced, withdrawn, forgotten, differs, absent, present, recovered, looked}
	table := map[state][2][]string{ // idle, with a job; in the order of events
		queued: {
			{"queued, now", "removing, now", "queued, in 1m0s: drop", "-", "-", "-", "-", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		ready: {
			{"queued, now", "removing, now", "ready, in 1m0s: drop", "ready, now", "removed, in 48s", "-", "ready, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		waiting: {
			{"queued, now", "removing, now", "waiting, in 1m0s: drop", "-", "-", "-", "waiting, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		failed: {
			{"queued, now", "removing, now", "failed, in 1m0s: drop", "-", "-", "-", "failed, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		removed: { // back where it was, it need not be waited for
			{"queued, now", "removing, now", "removed, in 1m0s: drop", "-", "-", "queued, now", "-", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		replaced: {
			{"queued, now", "removing, now", "replaced, in 1m0s: drop", "replaced, now", "replaced, now", "-", "replaced, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		foreign: {
			{"queued, now", "removing, now", "foreign, in 1m0s: drop", "foreign, now", "foreign, now", "-", "foreign, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		releasing: {
			{"queued, now", "removing, now", "releasing, in 1m0s: drop", "-", "-", "-", "releasing, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		excluded: {
			{"queued, now", "removing, now", "excluded: drop", "-", "-", "-", "-", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		keeping: { // for others: it is looked at only where something is said to be amiss
			{"queued, now", "removing, now", "keeping: drop", "keeping, now", "keeping, now", "-", "keeping, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		removing: {
			{"queued, now", "removing, now", "removing, in 1m0s: drop", "-", "-", "-", "removing, now", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
		gone: {
			{"queued, now", "removing, now", "gone: drop", "-", "-", "-", "-", "-"},
			{"queued, job: cancel", "removing, job: cancel", "-", "-", "-", "-", "-", "-"},
		},
	}
	for s := range states {
		for i, row := range table[s] {
			if len(row) != len(events) {
				t.Fatalf("%v: %d events in the table, want %d", s, len(row), len(events))
			}
			for k, want := range row {
				from := task{of: recordHash{1}, state: s, running: i == 1, due: t0.Add(time.Minute)}
				if want == "-" {
					want = after(from, doNothing)
				}
				got, do := next(from, event{kind: events[k], of: recordHash{2}}, t0)
				if after(got, do) != want {
					t.Errorf("%s, %v → %s, want %s", after(from, doNothing), events[k], after(got, do), want)
				}
			}
		}
	}
}

// TestEveryOutcome: what each outcome of a job makes of each state, whichever it was.
func TestEveryOutcome(t *testing.T) {
	for s := range states {
		for _, tc := range []struct {
			o                   Outcome
			want, hinted        string // without and with a hint while the job ran
			failures, failures2 int    // after the first and after the tenth in a row
		}{
			{Outcome{state: ready, looked: t0.Add(-time.Second)}, "ready, in 5m0s", "ready, now", 0, 0},
			{Outcome{state: ready, looked: t0.Add(time.Second)}, "ready, in 5m0s", "ready, in 5m0s", 0, 0}, // the check was after the hint
			{Outcome{state: replaced, left: "sha256:a"}, "replaced, in 5m0s", "replaced, now", 0, 0},
			{Excluded("of another platform"), "foreign, in 5m0s", "foreign, now", 0, 0},
			{Outcome{state: excluded}, "excluded", "excluded", 0, 0},
			{Outcome{state: keeping}, "keeping", "keeping, now", 0, 0},
			{Outcome{state: gone}, "gone", "gone", 0, 0},
			{Lacking("no room", 5), "waiting, in 5s", "waiting, in 5s", 0, 0},
			{Outcome{state: removing, retry: steady}, "removing, in 5s", "removing, in 5s", 0, 0},
			{NoSeed(fmt.Errorf("nobody")), "waiting, in 800ms", "waiting, in 800ms", 1, 3},
			{Failed(fmt.Errorf("broken")), "failed, in 800ms", "failed, in 800ms", 1, 10},
			{Outcome{state: releasing, retry: backoff}, "releasing, in 800ms", "releasing, in 800ms", 1, 10},
			{Outcome{state: removing, retry: backoff, err: fmt.Errorf("broken")}, "removing, in 800ms", "removing, in 800ms", 1, 10},
		} {
			from := task{of: recordHash{1}, state: s, running: true}
			got, do := next(from, event{kind: ended, of: recordHash{1}, outcome: tc.o}, t0)
			if after(got, do) != tc.want || got.failures != tc.failures {
				t.Errorf("%v, %v ended → %s with %d failures, want %s with %d", s, tc.o.state, after(got, do), got.failures, tc.want, tc.failures)
			}
			if (got.left != "") != (tc.o.state == replaced) || got.leftKnown != (tc.o.state == replaced) {
				t.Errorf("%v, %v ended: left %q, known %v", s, tc.o.state, got.left, got.leftKnown)
			}
			hinted, _ := next(from, event{kind: differs}, t0)
			hinted, do = next(hinted, event{kind: ended, of: recordHash{1}, outcome: tc.o}, t0)
			if after(hinted, do) != tc.hinted {
				t.Errorf("%v, hint, %v ended → %s, want %s", s, tc.o.state, after(hinted, do), tc.hinted)
			}
			for range 9 {
				got, _ = next(got, event{kind: ended, of: recordHash{1}, outcome: tc.o}, t0)
			}
			if got.failures != tc.failures2 {
				t.Errorf("%v ten times: %d failures, want %d", tc.o.state, got.failures, tc.failures2)
			}
			// A partition may leave two announcements of one version. The job of the one that
			// lost says nothing about the one that won, though it was done.
			stale, do := next(from, event{kind: ended, of: recordHash{9}, outcome: tc.o}, t0)
			if from.running = false; after(stale, do) != after(from, doNothing) {
				t.Errorf("%v, the job of another record ended → %s, want %s", s, after(stale, do), after(from, doNothing))
			}
		}
	}
}

// TestDue: a job begins where the time has come, once, and at a hint that was given
// while one ran.
func TestDue(t *testing.T) {
	for s := range states {
		from := task{state: s, due: t0, hinted: t0.Add(-time.Second)}
		got, do := next(from, event{kind: looked}, t0)
		if want := !s.final(); (do == startJob) != want || got.running != want {
			t.Errorf("%v that is due: action %d, running %v", s, do, got.running)
		}
		if again, do := next(got, event{kind: looked}, t0); do != doNothing || again != got {
			t.Errorf("%v begins a second job", s)
		}
		if early, do := next(task{state: s, due: t0.Add(1)}, event{kind: looked}, t0); do != doNothing || early.running {
			t.Errorf("%v begins a job too early", s)
		}
	}
}

// TestRemovals: an image that the kubelet may have removed comes back later each time,
// one that only people remove at once the first time, and after six hours nothing counts.
func TestRemovals(t *testing.T) {
	for pinned, want := range map[bool][]string{true: {"0s", "800ms", "1.6s", "3.2s"}, false: {"48s", "1m36s", "3m12s", "6m24s"}} {
		at, x := t0, task{}
		for i, pause := range want {
			x.state = ready
			x, _ = next(x, event{kind: absent, pinned: pinned}, at)
			if got := x.due.Sub(at).String(); got != pause || x.state != removed || x.removals != i+1 {
				t.Errorf("pinned %v, removal %d: %v in %s, want %s", pinned, x.removals, x.state, got, pause)
			}
			// A newer build does not begin anew.
			x, _ = next(x, event{kind: announced, of: recordHash{byte(i)}}, at)
		}
		at = at.Add(removalMemory + 1)
		x.state = ready
		if x, _ = next(x, event{kind: absent, pinned: pinned}, at); x.removals != 1 {
			t.Errorf("after six hours it is removal %d", x.removals)
		}
	}
}
