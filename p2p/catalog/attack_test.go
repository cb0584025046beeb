package catalog

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// junk is a record as large as one can be, of a reference that is i's.
func junk(i int) Announcement {
	a := announcement(fmt.Sprintf("docker.io/library/junk%d:1", i), 1, "x")
	for range 9 {
		a.On = append(a.On, "k="+strings.Repeat("v", maxSelectorBytes-2))
	}
	return a
}

// TestNoVersionClosesAReference: whatever version a member signs, the next
// announcement of the reference is taken by who has taken that one, and by a node
// that comes new.
func TestNoVersionClosesAReference(t *testing.T) {
	t.Parallel()
	const ref = "docker.io/library/app:1"
	evil, honest := newIdentity(t), newIdentity(t)
	for _, version := range []uint64{1<<64 - 1, 1<<64 - 2, 1 << 63, 1<<53 + 1, 1 << 53, 1<<53 - 1, uint64(time.Now().Add(time.Hour).UnixMicro()), uint64(time.Now().UnixMicro()), 1 << 32} {
		c, fresh := open(t, Config{}), open(t, Config{})
		if r, err := Sign(evil, announcement(ref, version, "evil")); err == nil {
			merge(t, c, r)
		}
		if _, taken := c.Get(ref); taken != (version <= newestVersion(time.Now())) {
			t.Errorf("version %d: taken %t", version, taken)
		}
		next, err := Sign(honest, announcement(ref, c.NextVersion(ref), "good"))
		if err != nil {
			t.Errorf("after version %d: %v", version, err)
			continue
		}
		for name, c := range map[string]*Catalog{"that node": c, "a new one": fresh} {
			if merge(t, c, next); c.byRef[ref].Hash() != next.Hash() {
				t.Errorf("after version %d: %s does not take version %d", version, name, next.ann.Version)
			}
		}
	}
}

// TestJunkLeavesRoom: what one announcer fills the catalog with neither keeps
// another one out nor takes more memory than the catalog may have, and when it is
// withdrawn its room is free.
func TestJunkLeavesRoom(t *testing.T) {
	t.Parallel()
	const limit = 200
	evil, honest := newIdentity(t), newIdentity(t)
	if got := open(t, Config{}).cfg.MaxBytes; got != 48<<20 {
		t.Errorf("a catalog takes %d bytes, want 48 MiB", got)
	}
	c := open(t, bounded(limit))
	for i := range limit + 10 {
		merge(t, c, sign(t, evil, junk(i)))
	}
	if got := bytesOf(c); got > limit*1024/2 {
		t.Errorf("%d bytes of one announcer's junk were taken, at most %d", got, limit*1024/2)
	}
	for i := range limit / 3 {
		r := sign(t, honest, announcement(fmt.Sprintf("docker.io/library/app:%d", i), 1, "good"))
		if merge(t, c, r); c.byRef[r.ann.Reference].Hash() != r.Hash() {
			t.Fatalf("honest announcement %d is not taken", i)
		}
	}
	before := len(c.All())
	for _, r := range c.All() {
		if r.AnnouncedBy() == evil.ID() {
			a := r.ann
			a.Version, a.Withdrawn = 2, true
			merge(t, c, sign(t, evil, a))
		}
	}
	third := newIdentity(t)
	for i := range limit {
		merge(t, c, sign(t, third, announcement(fmt.Sprintf("docker.io/library/more%d:1", i), 1, "good")))
	}
	if got := len(c.All()); got < before+limit/4 {
		t.Errorf("after the junk was withdrawn there are %d records, there were %d: its room did not come back", got, before)
	}
}

// TestWithdrawalFromTheFuture: a withdrawal lives its time from when it came, by
// whatever date it carries.
func TestWithdrawalFromTheFuture(t *testing.T) {
	t.Parallel()
	c := open(t, Config{TombstoneTTL: time.Hour})
	a := announcement("docker.io/library/a:1", 1, "x")
	a.Withdrawn, a.AnnouncedAt = true, time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)
	r := sign(t, newIdentity(t), a)
	merge(t, c, r)
	if err := c.SetReached(r); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		live  int
	}{{30 * time.Minute, 1}, {2 * time.Hour, 0}} {
		if err := c.Expire(time.Now().Add(step.after)); err != nil {
			t.Fatal(err)
		}
		if got := len(c.All()); got != step.live {
			t.Errorf("%v after it came: %d records, want %d", step.after, got, step.live)
		}
	}
}

// bounded is the configuration of a catalog that takes so many announcements.
func bounded(n int) Config { return Config{MaxBytes: int64(n) * recordCost} }

func bytesOf(c *Catalog) (n int) {
	for _, r := range c.byRef {
		n += len(r.Encode())
	}
	return n
}

// TestTrueErrors: who is refused learns which bound it was, who has used it up, and
// what to do; and it is forgotten once the reference has moved on.
func TestTrueErrors(t *testing.T) {
	t.Parallel()
	evil, honest := newIdentity(t), newIdentity(t)
	c := open(t, bounded(4))
	for i := range 3 {
		merge(t, c, sign(t, evil, announcement(fmt.Sprintf("docker.io/library/junk:%d", i), 1, "x")))
	}
	why, ok := c.Refused("docker.io/library/junk:2")
	var full *FullError
	if !ok || !errors.As(why.Why, &full) || full.Announcer != evil.ID() || full.LargestBytes != 2*recordCost || !strings.Contains(why.Why.Error(), string(evil.ID())) {
		t.Errorf("the share of one announcer: %v %+v", ok, why)
	}
	for i := range 3 {
		merge(t, c, sign(t, honest, announcement(fmt.Sprintf("docker.io/library/app:%d", i), 1, "x")))
	}
	if why, ok = c.Refused("docker.io/library/app:2"); !ok || !strings.Contains(why.Why.Error(), "the catalog is full") {
		t.Errorf("the whole: %v %+v", ok, why)
	}
	merge(t, c, sign(t, honest, announcement("docker.io/library/app:1", 2, "y"))) // what is there goes on
	gone := announcement("docker.io/library/app:1", 3, "y")
	gone.Withdrawn = true
	merge(t, c, sign(t, honest, gone), sign(t, honest, announcement("docker.io/library/app:2", 1, "x")))
	if _, ok := c.Refused("docker.io/library/app:2"); ok || c.byRef["docker.io/library/app:2"].payload == nil {
		t.Error("a withdrawal does not make room")
	}
	merge(t, c, sign(t, honest, announcement("docker.io/library/app:2", 1<<53-1, "x")))
	var version *VersionError
	if why, ok = c.Refused("docker.io/library/app:2"); !ok || !errors.As(why.Why, &version) || version.Version != 1<<53-1 {
		t.Errorf("a version far beyond: %v %+v", ok, why)
	}
	if got := len(c.Refusals()); got != 2 {
		t.Errorf("%d refusals, want 2", got)
	}
}

// TestAClockThatWentBack: a host whose clock says 1970 follows a reference whose
// version is near the bound, and its own announcements are taken.
func TestAClockThatWentBack(t *testing.T) {
	t.Parallel()
	c := open(t, Config{})
	v := uint64(time.Now().UnixMicro())
	poison := sign(t, newIdentity(t), announcement("docker.io/library/a:1", v, "x"))
	next := sign(t, newIdentity(t), announcement("docker.io/library/a:1", v+3, "y"))
	past := time.Unix(100, 0)
	if c.refuses(poison, Record{}, past) == nil || c.refuses(next, poison, past) != nil {
		t.Error("at 1970: a version of now is taken, or the next one is not")
	}
	if a, b := newestVersion(past), newestVersion(past.Add(time.Second)); b <= a || a < uint64(versionEpoch.UnixMicro()) {
		t.Errorf("at 1970 the bound is %d, a second later %d", a, b)
	}
}

// TestDiffStopsAtItsBytes: nobody makes a node encode more than it may send.
func TestDiffStopsAtItsBytes(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	c := open(t, Config{})
	for i := range 50 {
		merge(t, c, sign(t, id, announcement(fmt.Sprintf("docker.io/library/a:%d", i), 1, "x")))
	}
	total := 0
	for _, enc := range c.Diff(Buckets{}, 4096) {
		total += len(enc)
	}
	if total > 4096 || total < 2048 {
		t.Errorf("%d bytes, want at most 4096 and not much less", total)
	}
}
