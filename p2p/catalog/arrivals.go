package catalog

import (
	"encoding/binary"
	"time"

	bolt "go.etcd.io/bbolt"
)

// isEarly reports whether r is a withdrawal that says it is from the future.
func isEarly(r Record, now time.Time) bool { return r.ann.Withdrawn && r.ann.AnnouncedAt.After(now) }

// arrivals is when withdrawals came that say they are from the future, by reference. The
// lock of its catalog guards it.
type arrivals map[string]time.Time

// write records on disk when a withdrawal from the future came, so that its time is
// over some day however often the daemon starts. cur is
// the record that is here.
func (a arrivals) write(tx *bolt.Tx, r, cur Record, now time.Time) error {
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
	return b.Put(key, binary.BigEndian.AppendUint64(nil, uint64(a.of(r, cur, now).UnixMilli())))
}

// keep keeps in memory when r came, if its time is ahead.
func (a arrivals) keep(r, cur Record, now time.Time) {
	if isEarly(r, now) {
		a[r.ann.Reference] = a.of(r, cur, now)
	} else {
		delete(a, r.ann.Reference)
	}
}

// of is when r came, which may be the record that is here.
func (a arrivals) of(r, cur Record, now time.Time) time.Time {
	if at, ok := a[r.ann.Reference]; ok && cur.Hash() == r.Hash() {
		return at
	}
	return now
}

func (a arrivals) load(b *bolt.Bucket) error {
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		if len(v) == 8 {
			a[string(k)] = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		}
		return nil
	})
}

// since is from when on the time of a withdrawal counts: when it was made, or when it
// came where it says that it is from the future.
func (a arrivals) since(r Record, now time.Time) time.Time {
	if !r.ann.AnnouncedAt.After(now) {
		return r.ann.AnnouncedAt
	}
	if at, ok := a[r.ann.Reference]; ok {
		return at
	}
	return now
}

// outlived reports whether r is a withdrawal that has lived its time.
func (a arrivals) outlived(r Record, now time.Time, ttl time.Duration) bool {
	return r.ann.Withdrawn && now.Sub(a.since(r, now)) > ttl
}
