package converge

import (
	"crypto/sha256"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/wait"
)

// state is what is known of one reference on this host. Whether a job runs for it is no
// state: a ready image stays ready while it is checked.
type state int

const (
	queued    state = iota // to be obtained; nothing has been found out yet
	ready                  // as announced, when it was checked last
	waiting                // for room, for containerd, or for a member that has the seed index
	failed                 // the last try failed; it is tried again
	removed                // somebody removed the ready image; it is fetched again after a pause
	replaced               // excluded: somebody has put another build under the name
	foreign                // excluded: the image has no part for this host's platform
	releasing              // excluded by a rule; what this host had of it could not be released yet
	excluded               // by a rule, and nothing is held of it any more
	keeping                // excluded by a rule, but announced here: kept, since others get it from here
	removing               // withdrawn: to be released or purged
	gone                   // withdrawn, and released or purged
	states
)

var stateNames = [states]string{"queued", "ready", "waiting", "failed", "removed", "replaced", "foreign",
	"releasing", "excluded", "keeping", "removing", "gone"}

func (s state) String() string { return stateNames[s] }

// final reports whether nothing is to be done until the next announcement.
func (s state) final() bool { return s == excluded || s == gone }

// checked reports whether the state is what a check of the store found, and is checked
// again: at a hint, and without one.
func (s state) checked() bool { return s == ready || s == replaced || s == foreign }

// recordHash names the announcement that something is about.
type recordHash = [sha256.Size]byte

// task is how far this host is with one reference. It changes in next alone.
type task struct {
	of      recordHash
	state   state
	running bool      // a job works on it
	due     time.Time // no job begins before then; zero: at once
	hinted  time.Time // when it was last said that the store may differ; zero: not since the last job began

	failures  int // tries in a row
	removals  int // of the ready image, by others, within removalMemory
	removedAt time.Time

	// left is what the name stood for when this host was found excluded, once it is known.
	left      digest.Digest
	leftKnown bool
}

// retry is how the next try is paced.
type retry int

const (
	noRetry retry = iota // there is nothing to try again
	steady               // every waitPause: what it waits for may come at any time
	brief                // as backoff, up to the fourth pause: it is not the image that fails
	backoff              // with growing pauses, up to a minute
)

// Outcome is how a job ended, as a value: no error of it is read to find out which of
// these it is.
type Outcome struct {
	state  state
	retry  retry
	reason string // for people; empty where it is ready or gone

	looked  time.Time     // ready: when the check that found it began
	left    digest.Digest // replaced: what the name stands for
	lacking int64         // waiting for room: bytes of disk
	cause   string        // waiting or failed: of seeder_converge_failures_total
	err     error         // failed: for the log
}

// eventKind is what has happened to a reference.
type eventKind int

const (
	announced eventKind = iota // another announcement of it is the newest
	withdrawn                  // a withdrawal of it is the newest
	forgotten                  // there is no record of it any more
	differs                    // a hint: the record, the content or the seed index may not be as it was
	absent                     // there is no image record on this host
	present                    // the image record is at the announced target
	recovered                  // containerd has come back
	looked                     // time has passed
	ended                      // the job has ended
	eventKinds
)

var eventNames = [eventKinds]string{"announced", "withdrawn", "forgotten", "differs", "absent", "present", "recovered", "looked", "ended"}

func (k eventKind) String() string { return eventNames[k] }

// event is what has happened to a reference, with all that next needs to know.
type event struct {
	kind    eventKind
	of      recordHash // announced, withdrawn: the new record; ended: that of the job
	outcome Outcome    // ended
	pinned  bool       // absent: nobody but people removes an image
	random  float64    // absent, ended: in [0, 1), so that hosts do not march in step
}

// action is what the loop is to do.
type action int

const (
	doNothing action = iota
	startJob         // begin a job
	cancelJob        // end the job of the earlier announcement
	dropTask         // the task
)

const (
	// recheck is how often all of a ready reference is looked at without a hint: its
	// pin may have been removed, its labels changed.
	recheck = 5 * time.Minute
	// waitPause is how often it is looked whether what a job waits for has come:
	// room on the disk, the end of a container.
	waitPause = 5 * time.Second
	// removalMemory is for how long a removal counts against the next one.
	removalMemory = 6 * time.Hour
	// briefFailures is how many failures in a row a brief backoff counts.
	briefFailures = 3
)

// next is the converge loop's table: what becomes of a task by an event, and what is to
// be done. It looks at nothing but its arguments.
func next(t task, e event, now time.Time) (task, action) {
	switch e.kind {
	case announced, withdrawn:
		return begin(t, e)
	case forgotten:
		if !t.running {
			return t, dropTask
		}
	case differs:
		return hint(t, now), doNothing
	case absent:
		if t.state != ready || t.running {
			return hint(t, now), doNothing // a job moves records itself
		}
		return remove(t, e, now), doNothing
	case present:
		if t.state == removed && !t.running { // somebody has put it back
			t.state, t.due = queued, time.Time{}
		}
	case recovered:
		t = hint(t, now)
		if (t.state == waiting || t.state == failed || t.state == releasing || t.state == removing) && !t.running {
			t.due = time.Time{}
		}
	case looked:
		if d, ever := t.wait(now); ever && d <= 0 {
			t.running, t.hinted = true, time.Time{}
			return t, startJob
		}
	case ended:
		return end(t, e, now), doNothing
	}
	return t, doNothing
}

// wait is how long no job is to begin; ever is false where only an event changes that.
func (t task) wait(now time.Time) (d time.Duration, ever bool) {
	if t.running || t.state.final() || t.state == keeping && t.hinted.IsZero() {
		return 0, false
	}
	return max(t.due.Sub(now), 0), true
}

// begin makes the task one of another record. Removals by others stay on its account: a
// kubelet that needs the room needs it for the next build, too.
func begin(t task, e event) (task, action) {
	s := queued
	if e.kind == withdrawn {
		s = removing
	}
	n := task{of: e.of, state: s, running: t.running, removals: t.removals, removedAt: t.removedAt}
	if t.running {
		return n, cancelJob
	}
	return n, doNothing
}

// hint notes that the store may differ from what was found. What waits, or has failed,
// keeps its pause.
func hint(t task, now time.Time) task {
	t.hinted = now
	if (t.state.checked() || t.state == keeping) && !t.running {
		t.due = time.Time{}
	}
	return t
}

// remove counts a removal of the ready image. It is not fetched again at once where the
// kubelet may have needed the room; and nobody is fought.
func remove(t task, e event, now time.Time) task {
	if now.Sub(t.removedAt) > removalMemory {
		t.removals = 0
	}
	t.removals++
	t.state, t.removedAt, t.hinted = removed, now, now
	t.due = now.Add(removalPause(t.removals, e.pinned, e.random))
	return t
}

// end takes what a job found. That of an earlier announcement says nothing of this one.
func end(t task, e event, now time.Time) task {
	t.running = false
	if e.of != t.of {
		return t
	}
	o := e.outcome
	t.state, t.left, t.leftKnown = o.state, o.left, o.state == replaced
	switch o.retry {
	case noRetry:
		t.failures, t.due = 0, now.Add(recheck)
		if o.state == ready && t.hinted.Before(o.looked) { // an import makes events that its own check answers
			t.hinted = time.Time{}
		}
		if !t.hinted.IsZero() {
			t.due = time.Time{}
		}
	case steady:
		t.failures, t.due = 0, now.Add(waitPause)
	default:
		t.failures++
		t.due = now.Add(backoffPause(t.failures, e.random))
		if o.retry == brief {
			t.failures = min(t.failures, briefFailures)
		}
	}
	return t
}

// backoffPause is how long to wait after the n-th failure in a row (n ≥ 1): 1 s,
// doubled each time, at most a minute, ± 20 % so that hosts do not march in
// step. r is uniform in [0, 1).
func backoffPause(n int, r float64) time.Duration {
	return time.Duration(float64(wait.Doubled(time.Second, time.Minute, n-1)) * (0.8 + 0.4*r))
}

// removalPause is how long after its n-th removal (n ≥ 1) an image is fetched again:
// one that only people remove at once, and then as after a failure; one that the
// kubelet may have removed after a minute, doubled each time, at most an hour.
func removalPause(n int, pinned bool, r float64) time.Duration {
	switch {
	case pinned && n == 1:
		return 0
	case pinned:
		return backoffPause(n-1, r)
	}
	return time.Duration(float64(wait.Doubled(time.Minute, time.Hour, n-1)) * (0.8 + 0.4*r))
}
