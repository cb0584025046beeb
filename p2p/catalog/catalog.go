package catalog

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"seeder/internal/disk"
	"seeder/internal/wait"
	"seeder/p2p/trust"
)

const (
	// defaultTombstoneTTL is how long a withdrawal is part of the catalog. After that
	// it is only kept against hosts that were away for longer.
	defaultTombstoneTTL = 30 * 24 * time.Hour
)

// ErrSuperseded is wrapped where the catalog has another record of a reference than the one
// by which a caller decided.
var ErrSuperseded = errors.New("superseded")

// Config is what a catalog needs. Path is its file; Allow says who may announce
// (nil: everybody); zero numbers stand for the defaults.
type Config struct {
	Path         string
	Allow        func(trust.NodeID) bool
	Log          *slog.Logger
	TombstoneTTL time.Duration
	MaxBytes     int64 // of announcements, see DefaultMaxBytes
	// Now is this host's clock; nil: time.Now.
	Now func() time.Time
}

// Catalog is the newest record of each reference, in memory and on disk. It is
// safe for concurrent use.
type Catalog struct {
	cfg  Config
	file file

	mu    sync.RWMutex
	byRef map[string]Record
	// buried are withdrawals that have lived their time, by reference. They are no
	// part of the summary and nothing is left to do about them; but a host that comes
	// back with the announcement from before is told, and has no effect on others.
	buried  map[string]Record
	buckets Buckets
	changed wait.Signal

	trail    trail
	ledger   ledger
	arrivals arrivals
	refusals refusals
}

// Open reads the catalog at cfg.Path, or makes it. A file that is damaged is set
// aside and the catalog begins empty; a record that is damaged or whose announcer
// is not allowed is left out. Both are logged: the records come back from other
// nodes, which no catalog loses for long.
func Open(cfg Config) (*Catalog, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Allow == nil {
		cfg.Allow = func(trust.NodeID) bool { return true }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.TombstoneTTL == 0 {
		cfg.TombstoneTTL = defaultTombstoneTTL
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	c := &Catalog{cfg: cfg, changed: wait.NewSignal(), refusals: refusals{log: cfg.Log, byRef: map[string]Refusal{}, logged: map[trust.NodeID]bool{}}}
	err := c.openFile()
	if errors.Is(err, disk.ErrDamaged) {
		aside, serr := disk.SetAside(cfg.Path)
		if serr != nil {
			return nil, errors.Join(err, serr)
		}
		cfg.Log.Error("the catalog file was damaged; renamed it, and rebuilding it from other nodes", "path", cfg.Path, "aside", aside, "err", err)
		err = c.openFile()
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Now is what this host's clock says, by which announcements are dated and withdrawals
// are old.
func (c *Catalog) Now() time.Time { return c.cfg.Now() }

// put replaces the record of a reference in memory. The caller holds mu or is
// alone.
func (c *Catalog) put(r Record) {
	if old, ok := c.byRef[r.ann.Reference]; ok {
		c.buckets.toggle(old)
	}
	c.byRef[r.ann.Reference] = r
	c.buckets.toggle(r)
}

// toggle adds a record to its bucket, or takes it out of it.
func (b *Buckets) toggle(r Record) {
	h := r.Hash()
	b[bucketOf(r.ann.Reference)] ^= binary.BigEndian.Uint64(h[:])
}

// Merge takes the records that win over what is here, writes them to disk in one
// transaction and returns them. What is not taken for its announcer, its version or
// for want of room is passed over; Refused says why. On an error nothing was taken.
func (c *Catalog) Merge(records ...Record) (changed []Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	winners, bury := map[string]Record{}, map[string]Record{}
	for _, r := range records {
		ref := r.ann.Reference
		cur, known := c.newest(ref, winners, bury)
		if r.payload == nil || cur.payload != nil && !Newer(r, cur) {
			continue
		}
		if why := c.refuses(r, cur, now); why != nil {
			c.refusals.add(r, why, now)
			continue
		}
		c.ledger.count(cur, -1)
		c.ledger.count(r, 1)
		delete(bury, ref)
		if !known && c.arrivals.outlived(r, now, c.cfg.TombstoneTTL) { // and nothing is known here that it withdraws
			bury[ref] = r
		} else {
			winners[ref] = r
		}
	}
	if len(winners) == 0 && len(bury) == 0 {
		return nil, nil
	}
	if err := c.write(winners, bury, now); err != nil {
		c.ledger.recount(c.byRef, c.buried)
		return nil, err
	}
	for ref, r := range winners {
		c.put(r)
		delete(c.buried, ref)
		changed = append(changed, r)
	}
	maps.Copy(c.buried, bury)
	for _, taken := range []map[string]Record{winners, bury} {
		for ref, r := range taken {
			c.arrivals.keep(r, c.byRef[ref], now)
			c.refusals.taken(r)
		}
	}
	if len(changed) > 0 {
		c.changed.Set()
	}
	return changed, nil
}

// newest is the record of ref that counts, with what is about to be taken; known says
// that it is not one that is buried. mu is held.
func (c *Catalog) newest(ref string, winners, bury map[string]Record) (r Record, known bool) {
	if r, known = winners[ref]; known {
		return r, true
	}
	if r, known = c.byRef[ref]; known {
		return r, true
	}
	if r, ok := bury[ref]; ok {
		return r, false
	}
	return c.buried[ref], false
}

// Changed wakes up after changes, several of them at once perhaps. It is for one
// reader.
func (c *Catalog) Changed() <-chan struct{} { return c.changed }

// Get returns the record of a reference.
func (c *Catalog) Get(ref string) (Record, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.byRef[ref]
	return r, ok
}

// Buried returns the withdrawal of a reference that has lived its time.
func (c *Catalog) Buried(ref string) (Record, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.buried[ref]
	return r, ok
}

// All returns every record, withdrawn ones too, in no order.
func (c *Catalog) All() []Record {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]Record, 0, len(c.byRef))
	for _, r := range c.byRef {
		out = append(out, r)
	}
	return out
}

// NextVersion is the version of the next announcement of ref: one more than the
// highest seen, buried ones included. Merge takes it.
func (c *Catalog) NextVersion(ref string) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return min(max(c.byRef[ref].ann.Version, c.buried[ref].ann.Version)+1, MaxVersion)
}

// Buckets is the summary of this catalog.
func (c *Catalog) Buckets() Buckets {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.buckets
}

// Hash is the XOR of all buckets: equal for equal catalogs, and different for
// different ones but for a chance of 2^-64.
func (c *Catalog) Hash() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var h uint64
	for _, b := range c.buckets {
		h ^= b
	}
	return h
}

// Diff returns the encoded records of the buckets in which a remote catalog differs,
// and after them the buried ones: what differs may be an announcement from before. It
// stops before they have more than limit bytes in all, each counted with room for its
// length; the order is another one each time.
func (c *Catalog) Diff(remote Buckets, limit int) [][]byte {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out [][]byte
	for _, records := range []map[string]Record{c.byRef, c.buried} {
		for ref, r := range records {
			if b := bucketOf(ref); c.buckets[b] == remote[b] {
				continue
			}
			enc := r.Encode()
			if limit -= len(enc) + binary.MaxVarintLen32; limit < 0 {
				return out
			}
			out = append(out, enc)
		}
	}
	return out
}

// Expire buries the withdrawals that are older than the tombstones' time to live
// and done with on this host, and forgets some of them where there are too many.
func (c *Catalog) Expire(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := map[string]Record{}
	for ref, r := range c.byRef {
		if c.arrivals.outlived(r, now, c.cfg.TombstoneTTL) && c.trail.is(r) {
			old[ref] = r
		}
	}
	if len(old) > 0 {
		if err := c.bury(old, now); err != nil {
			return err
		}
		c.changed.Set()
	}
	return c.forget(c.surplus(now))
}

// bury takes withdrawals out of the summary. mu is held.
func (c *Catalog) bury(old map[string]Record, now time.Time) error {
	if err := c.write(nil, old, now); err != nil {
		return err
	}
	for ref, r := range old {
		c.buckets.toggle(r)
		delete(c.byRef, ref)
		c.buried[ref] = r
	}
	return nil
}

// forget drops records, and what is known of their references. mu is held.
func (c *Catalog) forget(records map[string]Record) error {
	if len(records) == 0 {
		return nil
	}
	err := c.file.update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{recordsBucket, buriedBucket, reachedBucket, historyBucket, cameBucket} {
			b := tx.Bucket(name)
			for ref := range records {
				if b == nil {
					continue
				}
				if err := b.Delete([]byte(ref)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for ref, r := range records {
		if _, ok := c.byRef[ref]; ok {
			c.buckets.toggle(r)
			delete(c.byRef, ref)
			c.changed.Set()
		}
		c.ledger.count(r, -1)
		delete(c.buried, ref)
		c.trail.forget(ref)
		delete(c.arrivals, ref)
	}
	return nil
}

// Close closes the file.
func (c *Catalog) Close() error { return c.file.db.Close() }
