package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"seeder/p2p/trust"
)

const (
	// DefaultMaxBytes bounds the announcements of a catalog. With their decoded form
	// they take about twice as much memory, and as much on disk. Half of it is for one
	// announcer at most, and a third as much again is for withdrawals.
	DefaultMaxBytes = 48 << 20
	// recordCost is what a record counts for at least: so the next announcement of a
	// reference hardly ever needs more room than the one before it.
	recordCost = 1 << 10

	// versionsAhead is how far a record may be ahead of the one that is here, whatever
	// the clock says: so a host whose clock has gone back follows the others. It is so
	// little that a million records lead away from the clocks by a quarter of an hour.
	versionsAhead = 1024
)

// versionEpoch stands for the clock of a host that has none.
var versionEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// newestVersion is the highest version that a reference can have by now: one for each
// microsecond since 1970. Nobody announces that often, so it never holds up an honest
// announcement; and since it grows, no version is the last one. It depends on nothing
// but the time, so nodes that refuse a record now take it a little later, and catalogs
// become equal. Before versionEpoch the clock of this host is wrong: it counts from
// then on.
func newestVersion(now time.Time) uint64 {
	at := now.UnixMicro()
	if now.Before(versionEpoch) {
		at = versionEpoch.UnixMicro() + max(at, 0)
	}
	return min(uint64(at), MaxVersion)
}

// VersionError refuses a record whose version cannot be.
type VersionError struct {
	Reference       string
	Version, Newest uint64
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("refused version %d of %s: at most %d versions are possible by now; the announcer or a clock is wrong",
		e.Version, e.Reference, e.Newest)
}

// AnnouncerError refuses a record whose announcer may not announce.
type AnnouncerError struct{ Announcer trust.NodeID }

func (e *AnnouncerError) Error() string {
	return "its announcer is not in `announcers` on this host"
}

// FullError refuses an announcement for which the catalog has no room.
type FullError struct {
	Reference    string
	Bytes, Limit int64        // of all announcers, or of Announcer
	Announcer    trust.NodeID // whose share is used up; empty: all of it is
	Largest      trust.NodeID // who has announced most of it
	LargestName  string
	LargestBytes int64
}

func (e *FullError) Error() string {
	what := "the catalog is full"
	if e.Announcer != "" {
		what = fmt.Sprintf("the catalog is full for announcer %s", e.Announcer)
	}
	return fmt.Sprintf("%s: %d of %d KiB are used, %d KiB of it by node %s (id %s); withdraw what is not needed, or exclude that node with `announcers` on every host",
		what, e.Bytes>>10, e.Limit>>10, e.LargestBytes>>10, e.LargestName, e.Largest)
}

// usage is what records take, by announcer and in all, in bytes.
type usage struct {
	all int64
	by  map[trust.NodeID]int64
}

func (u *usage) add(r Record, sign int64) {
	if u.by == nil {
		u.by = map[trust.NodeID]int64{}
	}
	id, bytes := r.AnnouncedBy(), sign*r.cost()
	u.all += bytes
	if u.by[id] += bytes; u.by[id] <= 0 {
		delete(u.by, id)
	}
}

// cost is what a record counts for, in bytes.
func (r Record) cost() int64 {
	return max(int64(len(r.payload)+len(r.public)+len(r.signature)+1+binary.MaxVarintLen32), recordCost)
}

// ledger is what the records of a catalog take: announcements, and withdrawals with those
// that are buried. The lock of its catalog guards it.
type ledger struct{ live, gone usage }

// count adds a record to what its kind takes, or takes it out with sign -1.
func (l *ledger) count(r Record, sign int64) {
	if r.payload == nil {
		return
	}
	if r.ann.Withdrawn {
		l.gone.add(r, sign)
	} else {
		l.live.add(r, sign)
	}
}

// recount counts everything anew.
func (l *ledger) recount(all ...map[string]Record) {
	*l = ledger{}
	for _, records := range all {
		for _, r := range records {
			l.count(r, 1)
		}
	}
}

// refuses says why r, which wins over cur (perhaps none), is not taken. mu is held.
func (c *Catalog) refuses(r, cur Record, now time.Time) error {
	if !c.cfg.Allow(r.AnnouncedBy()) {
		return &AnnouncerError{Announcer: r.AnnouncedBy()}
	}
	if newest := max(newestVersion(now), cur.ann.Version+versionsAhead); r.ann.Version > newest {
		return &VersionError{Reference: r.ann.Reference, Version: r.ann.Version, Newest: newest}
	}
	if r.ann.Withdrawn {
		if cur.payload != nil {
			return nil // of what is known here; Expire sees to the bound
		}
		return full(r, cur, &c.ledger.gone, c.cfg.MaxBytes/3, c.byRef)
	}
	return full(r, cur, &c.ledger.live, c.cfg.MaxBytes, c.byRef)
}

// full is an error where r in the place of cur needs room that u does not have.
func full(r, cur Record, u *usage, limit int64, byRef map[string]Record) error {
	by := r.AnnouncedBy()
	all, own := r.cost(), r.cost()
	if cur.payload != nil && cur.ann.Withdrawn == r.ann.Withdrawn {
		all -= cur.cost()
		if cur.AnnouncedBy() == by {
			own -= cur.cost()
		}
	}
	e := &FullError{Reference: r.ann.Reference, Bytes: u.all, Limit: limit}
	switch {
	case all > 0 && u.all+all > limit:
	case own > 0 && u.by[by]+own > limit/2:
		e.Announcer, e.Bytes, e.Limit = by, u.by[by], limit/2
	default:
		return nil
	}
	for id, bytes := range u.by {
		if bytes > e.LargestBytes || bytes == e.LargestBytes && id < e.Largest {
			e.Largest, e.LargestBytes = id, bytes
		}
	}
	e.LargestName = nameOf(byRef, e.Largest)
	return e
}

// nameOf is the name under which an announcer has announced something.
func nameOf(byRef map[string]Record, id trust.NodeID) string {
	for _, r := range byRef {
		if r.AnnouncedBy() == id {
			return r.ann.NodeName
		}
	}
	return "unknown"
}

const (
	// maxRefusals bounds the refused announcements that are remembered.
	maxRefusals = 1024
	// maxLogged bounds how many announcers the log names, and fullInterval how often it
	// says that there is no room.
	maxLogged    = 256
	fullInterval = time.Minute
)

// Refusal is an announcement that was not taken, and why.
type Refusal struct {
	Announcement
	Why error
}

// refusals are the announcements that were not taken. The lock of its catalog guards them.
type refusals struct {
	log        *slog.Logger
	byRef      map[string]Refusal
	logged     map[trust.NodeID]bool
	loggedFull time.Time
}

// add remembers and logs that r was not taken: it is offered again and again, so
// the log says it once.
func (f *refusals) add(r Record, why error, now time.Time) {
	ref := r.ann.Reference
	if old, known := f.byRef[ref]; known || len(f.byRef) < maxRefusals {
		if !known || old.Version <= r.ann.Version {
			f.byRef[ref] = Refusal{r.ann, why}
		}
	}
	by := r.AnnouncedBy()
	var announcer *AnnouncerError
	switch {
	case errors.As(why, &announcer):
		if !f.logged[by] && len(f.logged) < maxLogged {
			f.logged[by] = true
			f.log.Warn("ignoring announcements from a node that is not listed in `announcers`",
				"ref", ref, "announcer", by, "node", r.ann.NodeName)
		}
	case now.Sub(f.loggedFull) >= fullInterval:
		f.loggedFull = now
		f.log.Error("refused an announcement", "ref", ref, "announcer", by, "node", r.ann.NodeName, "err", why)
	}
}

// taken says that r, or a newer one, is here.
func (f *refusals) taken(r Record) {
	if f.byRef[r.ann.Reference].Version <= r.ann.Version {
		delete(f.byRef, r.ann.Reference)
	}
}

// Refused is what was not taken of a reference and is newer than what is here.
func (c *Catalog) Refused(ref string) (Refusal, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.refusals.byRef[ref]
	return r, ok && r.Version > c.byRef[ref].ann.Version
}

// Refusals is all of that, in no order.
func (c *Catalog) Refusals() []Refusal {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Refusal
	for ref, r := range c.refusals.byRef {
		if r.Version > c.byRef[ref].ann.Version {
			out = append(out, r)
		}
	}
	return out
}

// surplus picks withdrawals until those that are left fit: always one of the announcer
// that has the most, the oldest that are done with first. mu is held.
func (c *Catalog) surplus(now time.Time) map[string]Record {
	limit := c.cfg.MaxBytes / 3
	if c.ledger.gone.all <= limit {
		return nil
	}
	by := map[trust.NodeID][]Record{}
	for _, records := range []map[string]Record{c.byRef, c.buried} {
		for _, r := range records {
			if r.ann.Withdrawn {
				by[r.AnnouncedBy()] = append(by[r.AnnouncedBy()], r)
			}
		}
	}
	// Nothing is left to do here about those that are buried or have had their effect.
	done := func(r Record) bool { return c.buried[r.ann.Reference].payload != nil || c.trail.is(r) }
	for _, records := range by {
		slices.SortFunc(records, func(a, b Record) int {
			if ad, bd := done(a), done(b); ad != bd {
				return map[bool]int{true: -1, false: 1}[ad]
			}
			return c.arrivals.since(a, now).Compare(c.arrivals.since(b, now))
		})
	}
	out, left := map[string]Record{}, usage{all: c.ledger.gone.all, by: maps.Clone(c.ledger.gone.by)}
	for left.all > limit {
		var most trust.NodeID
		for id, bytes := range left.by {
			if bytes > left.by[most] || most == "" || bytes == left.by[most] && id < most {
				most = id
			}
		}
		if len(by[most]) == 0 {
			break
		}
		r := by[most][0]
		by[most] = by[most][1:]
		out[r.ann.Reference] = r
		left.add(r, -1)
	}
	return out
}
