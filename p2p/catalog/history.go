package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// reached is the record that this host has been at last.
type reached struct {
	record [sha256.Size]byte // its hash
	target digest.Digest     // empty: written by a version that did not keep it
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
