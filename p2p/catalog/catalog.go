package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"seeder/disk"
	"seeder/p2p/trust"
)

const (
	// defaultTombstoneTTL is how long a withdrawal is remembered. A host that
	// stays away longer may bring the announcement back.
	defaultTombstoneTTL = 30 * 24 * time.Hour
	// defaultMaxRecords bounds the catalog: 50,000 records of about 600 bytes are
	// 30 MB in memory and as much on disk.
	defaultMaxRecords = 50_000
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

	mu      sync.RWMutex
	byRef   map[string]Record
	reached map[string][sha256.Size]byte // hash of the record, by reference
	buckets Buckets
	changed chan struct{} // capacity 1
}

var (
	recordsBucket = []byte("records")
	reachedBucket = []byte("reached")
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
		cfg.MaxRecords = defaultMaxRecords
	}
	c := &Catalog{cfg: cfg, changed: make(chan struct{}, 1)}
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
		for _, name := range [][]byte{recordsBucket, reachedBucket} {
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
	c.byRef, c.reached, c.buckets = map[string]Record{}, map[string][sha256.Size]byte{}, Buckets{}
	var damaged [][]byte
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

// remove takes damaged records out of the file, so that they are told once.
func (c *Catalog) remove(keys [][]byte) {
	if len(keys) == 0 {
		return
	}
	err := c.db.Update(func(tx *bolt.Tx) error {
		for _, k := range keys {
			if err := tx.Bucket(recordsBucket).Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		c.cfg.Log.Warn("cannot remove damaged records of the catalog", "path", c.cfg.Path, "err", err)
	}
}

// load reads the file and returns the keys of damaged records.
func (c *Catalog) load(tx *bolt.Tx) (damaged [][]byte, err error) {
	reached, records := tx.Bucket(reachedBucket), tx.Bucket(recordsBucket)
	if reached == nil || records == nil {
		return nil, fmt.Errorf("%w: a bucket of the catalog is missing", disk.ErrDamaged)
	}
	err = reached.ForEach(func(k, v []byte) error {
		if len(v) == sha256.Size {
			c.reached[string(k)] = [sha256.Size]byte(v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = records.ForEach(func(k, v []byte) error {
		r, err := Decode(v)
		switch {
		case v == nil:
			return fmt.Errorf("%w: a bucket in the place of a record", disk.ErrDamaged)
		case err != nil || r.ann.Reference != string(k):
			c.cfg.Log.Error("a damaged record of the catalog is removed; it comes back from other nodes", "ref", string(k[:min(len(k), maxReferenceBytes)]), "err", err)
			damaged = append(damaged, bytes.Clone(k))
		case !c.cfg.Allow(r.AnnouncedBy()):
			c.cfg.Log.Warn("an announcement is left out: its announcer is not in `announcers`", "ref", string(k), "announcer", r.AnnouncedBy())
		default:
			c.put(r)
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
	winners := map[string]Record{}
	room := c.cfg.MaxRecords - len(c.byRef)
	for _, r := range records {
		ref := r.ann.Reference
		if r.payload == nil || !c.cfg.Allow(r.AnnouncedBy()) {
			continue
		}
		cur, known := c.byRef[ref]
		if w, ok := winners[ref]; ok {
			cur = w
		} else if !known {
			if room <= 0 {
				c.cfg.Log.Error("the catalog is full; an announcement is not taken", "ref", ref, "records", c.cfg.MaxRecords)
				continue
			}
			room--
			winners[ref] = r
			continue
		}
		if Newer(r, cur) {
			winners[ref] = r
		}
	}
	if len(winners) == 0 {
		return nil, nil
	}
	if err := c.write(winners); err != nil {
		return nil, err
	}
	for _, r := range winners {
		c.put(r)
		changed = append(changed, r)
	}
	c.wake()
	return changed, nil
}

func (c *Catalog) write(records map[string]Record) error {
	err := c.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(recordsBucket)
		for ref, r := range records {
			if err := b.Put([]byte(ref), r.Encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
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
	return ok && h == r.Hash()
}

// SetReached notes that this host is where r says.
func (c *Catalog) SetReached(r Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref, h := r.ann.Reference, r.Hash()
	if c.reached[ref] == h {
		return nil
	}
	if err := c.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(reachedBucket).Put([]byte(ref), h[:]) }); err != nil {
		return fmt.Errorf("write catalog %s: %w", c.cfg.Path, err)
	}
	c.reached[ref] = h
	return nil
}

// NextVersion is the version of the next announcement of ref: one more than the
// highest seen.
func (c *Catalog) NextVersion(ref string) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byRef[ref].ann.Version + 1
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

// Diff returns the records of the buckets in which a remote catalog differs.
func (c *Catalog) Diff(remote Buckets) []Record {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []Record
	for ref, r := range c.byRef {
		if b := bucketOf(ref); c.buckets[b] != remote[b] {
			out = append(out, r)
		}
	}
	return out
}

// Expire forgets withdrawals that are older than the tombstones' time to live.
func (c *Catalog) Expire(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var old []Record
	for _, r := range c.byRef {
		if r.ann.Withdrawn && now.Sub(r.ann.AnnouncedAt) > c.cfg.TombstoneTTL {
			old = append(old, r)
		}
	}
	if len(old) == 0 {
		return nil
	}
	err := c.db.Update(func(tx *bolt.Tx) error {
		for _, r := range old {
			for _, name := range [][]byte{recordsBucket, reachedBucket} {
				if err := tx.Bucket(name).Delete([]byte(r.ann.Reference)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write catalog %s: %w", c.cfg.Path, err)
	}
	for _, r := range old {
		c.toggle(r)
		delete(c.byRef, r.ann.Reference)
		delete(c.reached, r.ann.Reference)
	}
	c.wake()
	return nil
}

// Close closes the file.
func (c *Catalog) Close() error { return c.db.Close() }
