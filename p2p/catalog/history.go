package catalog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// reached is where this host has been last. The record itself may be lost, with all that it
// says, and what comes in its place may be older.
type reached struct {
	record  [sha256.Size]byte // the hash of the record of which nothing is left to do
	target  digest.Digest     // that this host was brought to last
	version uint64            // by the record of that version; 0: not known
}

// trail is where this host has been with each reference. It is local and survives
// restarts. The lock of its catalog guards it.
type trail struct {
	at     map[string]reached         // last
	before map[string][]digest.Digest // that, each target once, the latest first
}

func newTrail() trail {
	return trail{at: map[string]reached{}, before: map[string][]digest.Digest{}}
}

// is reports whether r is where this host has been last.
func (t trail) is(r Record) bool {
	at, ok := t.at[r.ann.Reference]
	return ok && at.record == r.Hash()
}

// overtook reports whether r is a withdrawal of before this host was where it is.
func (t trail) overtook(r Record) bool {
	return r.ann.Withdrawn && t.at[r.ann.Reference].version > r.ann.Version
}

func (t trail) forget(ref string) {
	delete(t.at, ref)
	delete(t.before, ref)
}

// Reached reports whether this host has been where r says since r came: then what
// differs now was changed here afterwards. It is local and survives restarts. A withdrawal
// that is older than what this host has been at counts as reached: the record of that was
// damaged here, comes back from others, and what it brought is not what was withdrawn.
func (c *Catalog) Reached(r Record) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.trail.is(r) || c.trail.overtook(r)
}

// ReachedTarget is the target of the record of ref that this host has been at
// last, whatever has come since; empty where there was none.
func (c *Catalog) ReachedTarget(ref string) digest.Digest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.trail.at[ref].target
}

// maxHistory bounds the targets that are remembered of a reference.
const maxHistory = 100

// History are the targets that this host has been at before the one that it has
// been at last, each once, the latest first. It is local and survives restarts.
func (c *Catalog) History(ref string) []digest.Digest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.trail.before[ref])
}

// load reads where this host has been: a record and its target, each as its sum, and the
// version, 8 bytes, big-endian, which files of before lack; and the targets before as their
// sums, one after the other.
func (t trail) load(at, before *bolt.Bucket) error {
	err := at.ForEach(func(k, v []byte) error {
		const sums = 2 * sha256.Size
		if len(v) != sums && len(v) != sums+8 {
			return nil
		}
		at := reached{record: [sha256.Size]byte(v), target: digest.NewDigestFromBytes(digest.SHA256, v[sha256.Size:sums])}
		if len(v) > sums {
			at.version = binary.BigEndian.Uint64(v[sums:])
		}
		t.at[string(k)] = at
		return nil
	})
	if err != nil || before == nil {
		return err
	}
	return before.ForEach(func(k, v []byte) error {
		for ; len(v) >= sha256.Size; v = v[sha256.Size:] {
			t.before[string(k)] = append(t.before[string(k)], digest.NewDigestFromBytes(digest.SHA256, v[:sha256.Size]))
		}
		return nil
	})
}

// passed is what was before of ref once it is at the target next.
func (t trail) passed(ref string, next digest.Digest) []digest.Digest {
	last := t.at[ref].target
	if last == next || last == "" {
		return t.before[ref]
	}
	out := []digest.Digest{last}
	for _, d := range t.before[ref] {
		if d != last && d != next && len(out) < maxHistory {
			out = append(out, d)
		}
	}
	return out
}

// SetReached records that this host is where r says, and where it was before. A withdrawal
// that this host has overtaken changes nothing of that but that nothing is left to do about
// it.
func (c *Catalog) SetReached(r Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ref, at := r.ann.Reference, reached{record: r.Hash(), target: r.ann.Target.Digest, version: r.ann.Version}
	if c.trail.overtook(r) {
		at.target, at.version = c.trail.at[ref].target, c.trail.at[ref].version
	}
	if c.trail.at[ref] == at {
		return nil
	}
	sum, err := hex.DecodeString(at.target.Encoded())
	if err != nil {
		return fmt.Errorf("digest %s: %w", at.target, err)
	}
	history := c.trail.passed(ref, at.target)
	if err := c.file.update(func(tx *bolt.Tx) error {
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
		return errors.Join(b.Put([]byte(ref), sums), tx.Bucket(reachedBucket).Put([]byte(ref), binary.BigEndian.AppendUint64(append(at.record[:], sum...), at.version)))
	}); err != nil {
		return err
	}
	c.trail.at[ref], c.trail.before[ref] = at, history
	return nil
}
