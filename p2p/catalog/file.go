package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"time"

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
	c.trail, c.arrivals, c.ledger = newTrail(), arrivals{}, ledger{}
	var damaged []place
	err = db.View(func(tx *bolt.Tx) (err error) {
		damaged, err = c.load(tx)
		return err
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	c.file = file{db, c.cfg.Path}
	if err := c.file.remove(damaged); err != nil {
		c.cfg.Log.Warn("failed to remove damaged records of the catalog", "path", c.cfg.Path, "err", err)
	}
	return nil
}

// place is where a record is in the file.
type place struct{ bucket, key []byte }

// file is the catalog on disk.
type file struct {
	db   *bolt.DB
	path string
}

// remove takes damaged records out of the file, so that they are told once.
func (f file) remove(damaged []place) error {
	if len(damaged) == 0 {
		return nil
	}
	return f.db.Update(func(tx *bolt.Tx) error {
		for _, d := range damaged {
			if err := tx.Bucket(d.bucket).Delete(d.key); err != nil {
				return err
			}
		}
		return nil
	})
}

// load reads the file and returns where damaged records are.
func (c *Catalog) load(tx *bolt.Tx) (damaged []place, err error) {
	for _, name := range [][]byte{recordsBucket, buriedBucket, reachedBucket} {
		if tx.Bucket(name) == nil {
			return nil, fmt.Errorf("%w: the bucket %s of the catalog is missing", disk.ErrDamaged, name)
		}
	}
	if err := c.trail.load(tx.Bucket(reachedBucket), tx.Bucket(historyBucket)); err != nil {
		return nil, err
	}
	if err := c.arrivals.load(tx.Bucket(cameBucket)); err != nil {
		return nil, err
	}
	old, err := loadRecords(c.cfg, tx, buriedBucket, func(r Record) { c.buried[r.ann.Reference] = r })
	if err != nil {
		return nil, err
	}
	live, err := loadRecords(c.cfg, tx, recordsBucket, c.put)
	c.ledger.recount(c.byRef, c.buried)
	return append(old, live...), err
}

func loadRecords(cfg Config, tx *bolt.Tx, bucket []byte, take func(Record)) (damaged []place, err error) {
	err = tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		r, err := Decode(v)
		switch {
		case v == nil:
			return fmt.Errorf("%w: a bucket in the place of a record", disk.ErrDamaged)
		case err != nil || r.ann.Reference != string(k):
			cfg.Log.Error("removed a damaged record of the catalog; other nodes send it again", "ref", string(k[:min(len(k), maxReferenceBytes)]), "err", err)
			damaged = append(damaged, place{bucket, bytes.Clone(k)})
		case !cfg.Allow(r.AnnouncedBy()):
			cfg.Log.Warn("ignored an announcement: its announcer is not in `announcers`", "ref", string(k), "announcer", r.AnnouncedBy())
		default:
			take(r)
		}
		return nil
	})
	return damaged, err
}

// write puts records on disk, each in the one of both places where it belongs now.
func (c *Catalog) write(records, buried map[string]Record, now time.Time) error {
	return c.file.update(func(tx *bolt.Tx) error {
		live, old := tx.Bucket(recordsBucket), tx.Bucket(buriedBucket)
		for ref, r := range records {
			if err := errors.Join(live.Put([]byte(ref), r.Encode()), old.Delete([]byte(ref)), c.arrivals.write(tx, r, c.byRef[ref], now)); err != nil {
				return err
			}
		}
		for ref, r := range buried {
			if err := errors.Join(old.Put([]byte(ref), r.Encode()), live.Delete([]byte(ref)), c.arrivals.write(tx, r, c.byRef[ref], now)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f file) update(change func(*bolt.Tx) error) error {
	if err := f.db.Update(change); err != nil {
		return fmt.Errorf("write catalog %s: %w", f.path, err)
	}
	return nil
}
