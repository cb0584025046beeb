package dst

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/store/chunk"
)

// replaceLost announces a new build in the place of each that no host has any more, after
// faults have hit all that had it: nobody could bring that back. What seeder itself lost is
// not passed over so.
func (c *cluster) replaceLost() {
	time.Sleep(time.Second)
	c.poll()
	newest := c.newest()
	for _, ref := range sortedRefs(newest) {
		if a := newest[ref].Announcement(); a.Withdrawn || !c.lost(newest[ref]) {
			continue
		}
		c.result.Lost++
		c.log.Info("LOST", "ref", ref)
		at := slices.Index(refs(), ref)
		announce(c, c.machines[0], Event{Arg: uint64(at)})
	}
	c.work.Wait()
	c.poll()
}

// lost reports whether something of an image is whole on no host, and a fault has taken it
// from one.
func (c *cluster) lost(rec catalog.Record) bool {
	a := rec.Announcement()
	index := c.seedIndex(a.Seed.Digest.Encoded())
	if index == nil {
		at := slices.IndexFunc(c.machines, func(m *machine) bool { return m.name == a.NodeName })
		return c.touched[a.Seed.Digest.Encoded()] && (at < 0 || !c.machines[at].whole(a.Target.Digest))
	}
	return slices.ContainsFunc(index.Blobs, func(b chunk.Blob) bool {
		hex := b.Digest.Encoded()
		whole := slices.ContainsFunc(c.machines, func(m *machine) bool { return hasSum(m.blobPath(hex), hex) })
		return !whole && (c.touched[hex] || c.touched[a.Target.Digest.Encoded()])
	})
}

// whole reports whether all of an image is on the disk of m. What has rotted is not, though
// nobody may have found that yet: the seed index cannot be made again of it.
func (m *machine) whole(target digest.Digest) bool {
	b, err := os.ReadFile(m.blobPath(target.Encoded()))
	var manifest ocispec.Manifest
	if err != nil || json.Unmarshal(b, &manifest) != nil || !hasSum(m.blobPath(target.Encoded()), target.Encoded()) {
		return false
	}
	return !slices.ContainsFunc(append(manifest.Layers, manifest.Config), func(d ocispec.Descriptor) bool {
		return !hasSum(m.blobPath(d.Digest.Encoded()), d.Digest.Encoded())
	})
}

func (c *cluster) seedIndex(hex string) *chunk.Index {
	for _, m := range c.machines {
		path := filepath.Join(m.dir, "seeds", hex+".json")
		if !hasSum(path, hex) {
			continue
		}
		if b, err := os.ReadFile(path); err == nil {
			if index, err := chunk.Decode(b); err == nil {
				return &index
			}
		}
	}
	return nil
}

func hasSum(path, want string) bool {
	b, err := os.ReadFile(path)
	sum := sha256.Sum256(b)
	return err == nil && hex.EncodeToString(sum[:]) == want
}
