package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"seeder/internal/disk"
)

var (
	recordsBucket = []byte("records")
	buriedBucket  = []byte("buried")
	reachedBucket = []byte("reached")
	historyBucket = []byte("history") // this and the next are made when they are first written
	cameBucket    = []byte("came")    // by reference: milliseconds since 1970, 8 bytes, big-endian
)

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
	c.reached, c.history, c.came = map[string]reached{}, map[string][]digest.Digest{}, map[string]time.Time{}
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
		c.cfg.Log.Warn("failed to remove damaged records of the catalog", "path", c.cfg.Path, "err", err)
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
	if err := c.loadCame(tx.Bucket(cameBucket)); err != nil {
		return nil, err
	}
	old, err := c.loadRecords(tx, buriedBucket, func(r Record) { c.buried[r.ann.Reference] = r })
	if err != nil {
		return nil, err
	}
	live, err := c.loadRecords(tx, recordsBucket, c.put)
	c.recount()
	return append(old, live...), err
}

func (c *Catalog) loadRecords(tx *bolt.Tx, bucket []byte, take func(Record)) (damaged []place, err error) {
	err = tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		r, err := Decode(v)
		switch {
		case v == nil:
			return fmt.Errorf("%w: a bucket in the place of a record", disk.ErrDamaged)
		case err != nil || r.ann.Reference != string(k):
			c.cfg.Log.Error("removed a damaged record of the catalog; other nodes send it again", "ref", string(k[:min(len(k), maxReferenceBytes)]), "err", err)
			damaged = append(damaged, place{bucket, bytes.Clone(k)})
		case !c.cfg.Allow(r.AnnouncedBy()):
			c.cfg.Log.Warn("ignored an announcement: its announcer is not in `announcers`", "ref", string(k), "announcer", r.AnnouncedBy())
		default:
			take(r)
		}
		return nil
	})
	return damaged, err
}

// write puts records on disk, each in the one of both places where it belongs now.
func (c *Catalog) write(records, buried map[string]Record, now time.Time) error {
	return c.update(func(tx *bolt.Tx) error {
		live, old := tx.Bucket(recordsBucket), tx.Bucket(buriedBucket)
		for ref, r := range records {
			if err := errors.Join(live.Put([]byte(ref), r.Encode()), old.Delete([]byte(ref)), c.writeCame(tx, r, now)); err != nil {
				return err
			}
		}
		for ref, r := range buried {
			if err := errors.Join(old.Put([]byte(ref), r.Encode()), live.Delete([]byte(ref)), c.writeCame(tx, r, now)); err != nil {
				return err
			}
		}
		return nil
	})
}

// isEarly reports whether r is a withdrawal that says it is from the future.
func isEarly(r Record, now time.Time) bool { return r.ann.Withdrawn && r.ann.AnnouncedAt.After(now) }

// writeCame notes on disk when a withdrawal from the future came, so that its time is
// over some day however often the daemon starts. mu is held.
func (c *Catalog) writeCame(tx *bolt.Tx, r Record, now time.Time) error {
	key, b := []byte(r.ann.Reference), tx.Bucket(cameBucket)
	if !isEarly(r, now) {
		if b == nil {
			return nil
		}
		return b.Delete(key)
	}
	b, err := tx.CreateBucketIfNotExists(cameBucket)
	if err != nil {
		return err
	}
	return b.Put(key, binary.BigEndian.AppendUint64(nil, uint64(c.cameAt(r, now).UnixMilli())))
}

// recordArrival keeps in memory when r came, if its time is ahead. mu is held.
func (c *Catalog) recordArrival(r Record, now time.Time) {
	if isEarly(r, now) {
		c.came[r.ann.Reference] = c.cameAt(r, now)
	} else {
		delete(c.came, r.ann.Reference)
	}
}

// cameAt is when r came. mu is held.
func (c *Catalog) cameAt(r Record, now time.Time) time.Time {
	if at, ok := c.came[r.ann.Reference]; ok && c.byRef[r.ann.Reference].Hash() == r.Hash() {
		return at
	}
	return now
}

func (c *Catalog) loadCame(b *bolt.Bucket) error {
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		if len(v) == 8 {
			c.came[string(k)] = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
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
