package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"seeder/disk"
	"seeder/p2p/trust"
)

const (
	// defaultTombstoneTTL is how long a withdrawal is part of the catalog. After that
	// it is only kept against hosts that were away for longer.
	defaultTombstoneTTL = 30 * 24 * time.Hour
	// DefaultMaxRecords bounds the catalog, old withdrawals included: 50,000 records
	// of about 600 bytes are 30 MB in memory and as much on disk.
	DefaultMaxRecords = 50_000
)

// Config is what a catalog needs. Path is its file; Allow says who may announce
// (nil: everybody); zero numbers stand for the defaults.
type Config struct {
	Path         string
	Allow        func(trust.NodeID) bool
	Log          *slog.Logger
	TombstoneTTL time.Duration
	MaxRecords   int
}

// Catalog is the newest record of each reference, in memory and on disk. It is
// safe for concurrent use.
type Catalog struct {
	cfg Config
	db  *bolt.DB

	mu    sync.RWMutex
	byRef map[string]Record
	// buried are withdrawals that have lived their time, by reference. They are no
	// part of the summary and nothing is left to do about them; but a host that comes
	// back with the announcement from before is told, and has no effect on others.
	buried  map[string]Record
	reached map[string]reached // by reference
	history map[string][]digest.Digest
	buckets Buckets
	changed chan struct{}         // capacity 1
	refused map[trust.NodeID]bool // announcers that the log has named
}

// reached is the record that this host has been at last.
type reached struct {
	record [sha256.Size]byte // its hash
	target digest.Digest     // empty: written by a version that did not keep it
}

var (
	recordsBucket = []byte("records")
	buriedBucket  = []byte("buried")
	reachedBucket = []byte("reached")
	historyBucket = []byte("history") // younger than the others: made when it is first written
)

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
	if cfg.TombstoneTTL == 0 {
		cfg.TombstoneTTL = defaultTombstoneTTL
	}
	if cfg.MaxRecords == 0 {
		cfg.MaxRecords = DefaultMaxRecords
	}
	c := &Catalog{cfg: cfg, changed: make(chan struct{}, 1), refused: map[trust.NodeID]bool{}}
	err := c.openFile()
	if errors.Is(err, disk.ErrDamaged) {
		aside, serr := disk.SetAside(cfg.Path)
		if serr != nil {
			return nil, errors.Join(err, serr)
		}
		cfg.Log.Error("the catalog file is damaged; it is set aside and rebuilt from other nodes", "path", cfg.Path, "aside", aside, "err", err)
		err = c.openFile()
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// openFile opens and loads the file. It writes to one that is there already only
// when there is something to write: a full disk keeps no daemon from starting.
func (c *Catalog) openFile() error {
	db, err := disk.OpenBolt(c.cfg.Path, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{recordsBucket, buriedBucket, reachedBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, disk.ErrInUse):
		return fmt.Errorf("%w; is a second daemon running on this data_dir?", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; make it readable and writable for the daemon, or remove it: it is rebuilt from other nodes", err)
	case err != nil:
		return err
	}
	c.byRef, c.buried, c.buckets = map[string]Record{}, map[string]Record{}, Buckets{}
	c.reached, c.history = map[string]reached{}, map[string][]digest.Digest{}
	var damaged []place
	err = db.View(func(tx *bolt.Tx) (err error) {
		damaged, err = c.load(tx)
		return err
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	c.db = db
	c.remove(damaged)
	return nil
}

// place is where a record is in the file.
type place struct{ bucket, key []byte }

// remove takes damaged records out of the file, so that they are told once.
func (c *Catalog) remove(damaged []place) {
	if len(damaged) == 0 {
		return
	}
	err := c.db.Update(func(tx *bolt.Tx) error {
		for _, d := range damaged {
			if err := tx.Bucket(d.bucket).Delete(d.key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		c.cfg.Log.Warn("cannot remove damaged records of the catalog", "path", c.cfg.Path, "err", err)
	}
}

// load reads the file and returns where damaged records are.
func (c *Catalog) load(tx *bolt.Tx) (damaged []place, err error) {
	for _, name := range [][]byte{recordsBucket, buriedBucket, reachedBucket} {
		if tx.Bucket(name) == nil {
			return nil, fmt.Errorf("%w: the bucket %s of the catalog is missing", disk.ErrDamaged, name)
		}
	}
	err = tx.Bucket(reachedBucket).ForEach(func(k, v []byte) error {
		switch len(v) {
		case sha256.Size:
			c.reached[string(k)] = reached{record: [sha256.Size]byte(v)}
		case 2 * sha256.Size:
			c.reached[string(k)] = reached{record: [sha256.Size]byte(v), target: digest.NewDigestFromBytes(digest.SHA256, v[sha256.Size:])}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := c.loadHistory(tx.Bucket(historyBucket)); err != nil {
		return nil, err
	}
	old, err := c.loadRecords(tx, buriedBucket, func(r Record) { c.buried[r.ann.Reference] = r })
	if err != nil {
		return nil, err
	}
	live, err := c.loadRecords(tx, recordsBucket, c.put)
	return append(old, live...), err
}

func (c *Catalog) loadRecords(tx *bolt.Tx, bucket []byte, take func(Record)) (damaged []place, err error) {
	err = tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		r, err := Decode(v)
		switch {
		case v == nil:
			return fmt.Errorf("%w: a bucket in the place of a record", disk.ErrDamaged)
		case err != nil || r.ann.Reference != string(k):
			c.cfg.Log.Error("a damaged record of the catalog is removed; it comes back from other nodes", "ref", string(k[:min(len(k), maxReferenceBytes)]), "err", err)
			damaged = append(damaged, place{bucket, bytes.Clone(k)})
		case !c.cfg.Allow(r.AnnouncedBy()):
			c.cfg.Log.Warn("an announcement is left out: its announcer is not in `announcers`", "ref", string(k), "announcer", r.AnnouncedBy())
		default:
			take(r)
		}
		return nil
	})
	return damaged, err
}

// put replaces the record of a reference in memory. The caller holds mu or is
// alone.
func (c *Catalog) put(r Record) {
	if old, ok := c.byRef[r.ann.Reference]; ok {
		c.toggle(old)
	}
	c.byRef[r.ann.Reference] = r
	c.toggle(r)
}

// toggle adds a record to its bucket, or takes it out of it.
func (c *Catalog) toggle(r Record) {
	h := r.Hash()
	c.buckets[bucketOf(r.ann.Reference)] ^= binary.BigEndian.Uint64(h[:])
}

// Merge takes the records that win over what is here, writes them to disk in one
// transaction and returns them. Records of announcers that are not allowed are
// passed over. On an error nothing was taken.
func (c *Catalog) Merge(records ...Record) (changed []Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	winners, bury := map[string]Record{}, map[string]Record{}
	room := c.cfg.MaxRecords - len(c.byRef)
	for _, r := range records {
		ref := r.ann.Reference
		if r.payload == nil || !c.allows(r) {
			continue
		}
		cur, known := c.byRef[ref]
		if w, ok := winners[ref]; ok {
			cur, known = w, true
		}
		old := c.buried[ref]
		if b, ok := bury[ref]; ok {
			old = b
		}
		switch {
		case known:
			if Newer(r, cur) {
				winners[ref] = r
			}
		case old.payload != nil && !Newer(r, old):
		case c.isOld(r, time.Now()): // and nothing is known here that it withdraws
			if len(c.byRef)+len(c.buried)+len(bury) < c.cfg.MaxRecords {
				bury[ref] = r
			}
		case room <= 0:
			c.cfg.Log.Error("the catalog is full; an announcement is not taken", "ref", ref, "records", c.cfg.MaxRecords)
		default:
			room--
			winners[ref] = r
		}
	}
	if len(winners) == 0 && len(bury) == 0 {
		return nil, nil
	}
	for ref := range winners {
		delete(bury, ref)
	}
	if err := c.write(winners, bury); err != nil {
		return nil, err
	}
	for _, r := range winners {
		c.put(r)
		delete(c.buried, r.ann.Reference)
		changed = append(changed, r)
	}
	maps.Copy(c.buried, bury)
	if len(changed) > 0 {
		c.wake()
	}
	return changed, nil
}

// maxRefused bounds how many announcers the log names.
const maxRefused = 256

// allows reports whether the announcer of r may announce. Who may not is named in
// the log once: the record is offered again and again. The caller holds mu.
func (c *Catalog) allows(r Record) bool {
	by := r.AnnouncedBy()
	if c.cfg.Allow(by) {
		return true
	}
	if !c.refused[by] && len(c.refused) < maxRefused {
		c.refused[by] = true
		c.cfg.Log.Warn("an announcement is not taken, nor are others of its announcer, who is not in `announcers`",
			"ref", r.ann.Reference, "announcer", by, "node", r.ann.NodeName)
	}
	return false
}

// isOld reports whether r is a withdrawal that has lived its time.
func (c *Catalog) isOld(r Record, now time.Time) bool {
	return r.ann.Withdrawn && now.Sub(r.ann.AnnouncedAt) > c.cfg.TombstoneTTL
}

// write puts records on disk, each in the one of both places where it belongs now.
func (c *Catalog) write(records, buried map[string]Record) error {
	return c.update(func(tx *bolt.Tx) error {
		live, old := tx.Bucket(recordsBucket), tx.Bucket(buriedBucket)
		for ref, r := range records {
			if err := errors.Join(live.Put([]byte(ref), r.Encode()), old.Delete([]byte(ref))); err != nil {
				return err
			}
		}
		for ref, r := range buried {
			if err := errors.Join(old.Put([]byte(ref), r.Encode()), live.Delete([]byte(ref))); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *Catalog) update(change func(*bolt.Tx) error) error {
	if err := c.db.Update(change); err != nil {
		return fmt.Errorf("write catalog %s: %w", c.cfg.Path, err)
	}
	return nil
}

func (c *Catalog) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
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

// Reached reports whether this host has been where r says since r came: then what
// differs now was changed here afterwards. It is local and survives restarts.
func (c *Catalog) Reached(r Record) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	h, ok := c.reached[r.ann.Reference]
	return ok && h.record == r.Hash()
}

// ReachedTarget is the target of the record of ref that this host has been at
// last, whatever has come since; empty where there was none.
func (c *Catalog) ReachedTarget(ref string) digest.Digest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.reached[ref].target
}

// maxHistory bounds the targets that are remembered of a reference.
const maxHistory = 100

// History are the targets that this host has been at before the one that it has
// been at last, each once, the latest first. It is local and survives restarts.
func (c *Catalog) History(ref string) []digest.Digest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.history[ref])
}

// loadHistory reads the targets as their sums, one after the other.
func (c *Catalog) loadHistory(b *bolt.Bucket) error {
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		for ; len(v) >= sha256.Size; v = v[sha256.Size:] {
			c.history[string(k)] = append(c.history[string(k)], digest.NewDigestFromBytes(digest.SHA256, v[:sha256.Size]))
		}
		return nil
	})
}

// passed is the history of ref once it is at the target next. mu is held.
func (c *Catalog) passed(ref string, next digest.Digest) []digest.Digest {
	last := c.reached[ref].target
	if last == next || last == "" {
		return c.history[ref]
	}
	out := []digest.Digest{last}
	for _, d := range c.history[ref] {
		if d != last && d != next && len(out) < maxHistory {
			out = append(out, d)
		}
	}
	return out
}

// SetReached notes that this host is where r says, and where it was before.
func (c *Catalog) SetReached(r Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref, at := r.ann.Reference, reached{record: r.Hash(), target: r.ann.Target.Digest}
	if c.reached[ref] == at {
		return nil
	}
	sum, err := hex.DecodeString(at.target.Encoded())
	if err != nil {
		return fmt.Errorf("digest %s: %w", at.target, err)
	}
	history := c.passed(ref, at.target)
	if err := c.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(historyBucket)
		if err != nil {
			return err
		}
		var sums []byte
		for _, d := range history {
			s, err := hex.DecodeString(d.Encoded())
			if err != nil {
				return fmt.Errorf("digest %s: %w", d, err)
			}
			sums = append(sums, s...)
		}
		return errors.Join(b.Put([]byte(ref), sums), tx.Bucket(reachedBucket).Put([]byte(ref), append(at.record[:], sum...)))
	}); err != nil {
		return err
	}
	c.reached[ref], c.history[ref] = at, history
	return nil
}

// NextVersion is the version of the next announcement of ref: one more than the
// highest seen, buried ones included.
func (c *Catalog) NextVersion(ref string) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return max(c.byRef[ref].ann.Version, c.buried[ref].ann.Version) + 1
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

// Diff returns the records of the buckets in which a remote catalog differs, and
// after them the buried ones: what differs may be an announcement from before.
func (c *Catalog) Diff(remote Buckets) []Record {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Record
	for _, records := range []map[string]Record{c.byRef, c.buried} {
		for ref, r := range records {
			if b := bucketOf(ref); c.buckets[b] != remote[b] {
				out = append(out, r)
			}
		}
	}
	return out
}

// Expire buries the withdrawals that are older than the tombstones' time to live
// and done with on this host, and forgets the oldest of those that are buried where
// there are too many records.
func (c *Catalog) Expire(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := map[string]Record{}
	for ref, r := range c.byRef {
		if c.isOld(r, now) && c.reached[ref].record == r.Hash() {
			old[ref] = r
		}
	}
	if len(old) > 0 {
		if err := c.bury(old); err != nil {
			return err
		}
		c.wake()
	}
	return c.forget(len(c.byRef) + len(c.buried) - c.cfg.MaxRecords)
}

// bury takes withdrawals out of the summary. mu is held.
func (c *Catalog) bury(old map[string]Record) error {
	if err := c.write(nil, old); err != nil {
		return err
	}
	for ref, r := range old {
		c.toggle(r)
		delete(c.byRef, ref)
		c.buried[ref] = r
	}
	return nil
}

// forget drops the n oldest of what is buried. mu is held.
func (c *Catalog) forget(n int) error {
	if n <= 0 || len(c.buried) == 0 {
		return nil
	}
	oldest := slices.SortedFunc(maps.Values(c.buried), func(a, b Record) int { return a.ann.AnnouncedAt.Compare(b.ann.AnnouncedAt) })
	oldest = oldest[:min(n, len(oldest))]
	err := c.update(func(tx *bolt.Tx) error {
		for _, r := range oldest {
			for _, name := range [][]byte{buriedBucket, reachedBucket, historyBucket} {
				b := tx.Bucket(name)
				if b == nil {
					continue
				}
				if err := b.Delete([]byte(r.ann.Reference)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range oldest {
		delete(c.buried, r.ann.Reference)
		delete(c.reached, r.ann.Reference)
		delete(c.history, r.ann.Reference)
	}
	return nil
}

// Close closes the file.
func (c *Catalog) Close() error { return c.db.Close() }
