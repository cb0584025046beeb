package dst

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/store/ctrd"
)

const (
	// convergeBound is how long after the last fault everything has to be as it should:
	// the longest pause between two tries of one image is 72 s (p2p/converge.go), and
	// finding each other again takes up to 24 s (p2p/gossip/join.go).
	convergeBound = 120 * time.Second
	// restBound is for what the janitor and memberlist do at their leisure.
	restBound = 90 * time.Second
	// quietCalls is how many calls of the store a converged node makes in ten seconds at
	// most: the look at everything, the questions whether it is there, the janitor's.
	quietCalls = 100
	// maxGoroutines of one node and its store, idle.
	maxGoroutines = 400
)

type hands map[string]map[digest.Digest]bool

// look holds all hosts to what has to be true at any moment.
func (c *cluster) look() {
	synctest.Wait() // nobody removes what is being looked at
	c.poll()
	c.result.Looks++
	c.refetched()
	c.bounds()
	for _, m := range c.running() {
		have, err := m.store.Store.List(context.Background())
		if err != nil {
			continue // its disk fails just now
		}
		for _, ref := range sortedRefs(have) {
			if err := m.complete(have[ref], false); err != nil {
				c.violation("%s names %s, which is not complete: %v", m.name, ref, err)
			}
		}
	}
}

// complete says what of an image is not on the disk of m; with sums, also what is
// there and has another digest. What a fault took is passed over unless sums is set.
func (m *machine) complete(target digest.Digest, sums bool) error {
	b, err := m.blob(target, sums)
	if err != nil || b == nil {
		return err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", target, err)
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		var err error
		if sums {
			_, err = m.blob(d.Digest, true)
		} else {
			err = m.present(d.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// present says that a blob is not on the disk, where no fault took it. It does not read
// it: that would be most of what a course costs.
func (m *machine) present(d digest.Digest) error {
	if m.tampered[d.Encoded()] {
		return nil
	}
	_, err := os.Lstat(m.blobPath(d.Encoded()))
	return err
}

// blob reads a blob from the disk; nil where a fault took it.
func (m *machine) blob(d digest.Digest, sums bool) ([]byte, error) {
	if !sums && m.tampered[d.Encoded()] {
		return nil, nil
	}
	b, err := os.ReadFile(m.blobPath(d.Encoded()))
	if err != nil || !sums {
		return b, err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != d.Encoded() {
		if m.rotten[d.Encoded()] {
			return nil, nil
		}
		return nil, fmt.Errorf("blob %s has another digest", d)
	}
	return b, nil
}

func (m *machine) blobPath(hex string) string {
	return filepath.Join(m.dir, "embedded", "content", "blobs", "sha256", hex)
}

// quiet ends all faults, waits until the cluster has converged, and holds it to
// everything.
func (c *cluster) quiet(round int) {
	c.endAll()
	for c.rotation%3 != 0 {
		c.rotate()
	}
	c.log.Info("QUIET", "round", round)
	for _, m := range c.machines {
		if !m.up {
			c.ends = nil
			if err := m.start(); err != nil {
				c.violation("round %d: %s does not start with nothing wrong: %v", round, m.name, err)
				return
			}
		}
	}
	c.ends = nil
	c.work.Wait()
	c.replaceLost()
	begun := time.Now()
	c.zombieMachines = 0
	err := c.within(convergeBound, c.converged)
	if err != nil {
		c.violation("round %d has not converged %s after the last fault: %v", round, convergeBound, err)
		return
	}
	c.result.Converged++
	c.result.Slowest = max(c.result.Slowest, time.Since(begun))
	if err := c.within(restBound, c.rested); err != nil {
		c.violation("round %d: left behind %s after it converged: %v", round, restBound, err)
	}
	c.idle(round)
}

// within asks again and again until ok holds.
func (c *cluster) within(limit time.Duration, ok func() error) error {
	for begun := time.Now(); ; {
		c.look()
		err := ok()
		if err == nil || time.Since(begun) > limit || len(c.result.Violations) > 0 {
			return err
		}
		c.sleepUntil(time.Now().Add(500 * time.Millisecond))
	}
}

// converged says what differs from what the catalog says.
func (c *cluster) converged() error {
	newest := c.newest()
	for _, m := range c.machines {
		alive := 0
		for _, o := range m.node.Members().Members {
			made := o.State == gossip.StateAlive && !slices.ContainsFunc(c.machines, func(m *machine) bool { return m.name == o.Name })
			if made && time.Since(c.ghosts) < ghostBound {
				continue
			}
			if o.State == gossip.StateAlive {
				alive++
			}
		}
		if alive != len(c.machines) {
			return fmt.Errorf("%s sees %d alive members of %d", m.name, alive, len(c.machines))
		}
		have, err := m.store.Store.List(context.Background())
		if err != nil {
			return err
		}
		for ref, rec := range m.last {
			if _, ok := newest[ref]; !ok {
				return fmt.Errorf("%s has version %d of %s, which was withdrawn more than a month ago", m.name, rec.Announcement().Version, ref)
			}
		}
		for _, ref := range sortedRefs(newest) {
			want := newest[ref]
			if got := m.last[ref]; got.Hash() != want.Hash() && !isOld(want) {
				return fmt.Errorf("%s has version %d of %s by %s, version %d by %s wins", m.name,
					got.Announcement().Version, ref, got.Announcement().NodeName, want.Announcement().Version, want.Announcement().NodeName)
			}
			if err := m.holds(ref, want, have[ref]); err != nil {
				return err
			}
		}
	}
	return nil
}

// holds says whether m has under ref what it should.
func (m *machine) holds(ref string, want catalog.Record, have digest.Digest) error {
	a := want.Announcement()
	switch {
	case a.Withdrawn && (!a.Purge || have == "" || m.wasPut(ref, have)):
		return nil
	case a.Withdrawn:
		return fmt.Errorf("%s still has %s under %s, which was purged", m.name, have, ref)
	case have == a.Target.Digest:
		if err := m.complete(have, true); err != nil {
			return fmt.Errorf("%s has %s of %s, but: %w; %s", m.name, have, ref, err, m.says(ref))
		}
		m.c.result.Images++
		return nil
	case have != "" && m.wasPut(ref, have):
		return nil
	}
	return fmt.Errorf("%s holds %q under %s, want %s (version %d by %s); %s", m.name, have, ref, a.Target.Digest, a.Version, a.NodeName, m.says(ref))
}

// says is what the node itself says of an image.
func (m *machine) says(ref string) string {
	imgs, err := m.node.Images(context.Background(), ref)
	if err != nil || len(imgs.Images) != 1 {
		return "the node says nothing of it"
	}
	for _, n := range imgs.Images[0].Nodes {
		if n.Name == m.name {
			return string(n.State) + ": " + n.Reason
		}
	}
	return "the node leaves itself out"
}

// rested says what is left on disks of work that is done.
func (c *cluster) rested() error {
	for _, m := range c.machines {
		for _, glob := range []string{"stage/*", "embedded/content/ingest/*", ".unfinished-*", "seeds/.unfinished-*"} {
			if found, _ := filepath.Glob(filepath.Join(m.dir, glob)); len(found) > 0 {
				leases, err := c.leasesOf(m)
				return fmt.Errorf("%s: %s%s; leases: %q, %v", m.name, strings.Join(found, ", "), inside(found[0]), leases, err)
			}
		}
		leases, err := c.leasesOf(m)
		if err != nil {
			return err
		}
		for _, l := range leases {
			if !strings.HasPrefix(l, "previous-") {
				return fmt.Errorf("%s: the lease %s", m.name, l)
			}
		}
	}
	return nil
}

// inside says what is in the directory of an ingest: of which reference it is, and how far.
func inside(dir string) (out string) {
	found, _ := os.ReadDir(dir) // none of a file
	for _, e := range found {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		out += fmt.Sprintf(", %s: %q of %d bytes, %v", e.Name(), b[:min(len(b), 80)], len(b), err)
	}
	return out
}

// leasesOf lists the leases of a copy of m's disk, since containerd's database has one
// user.
func (c *cluster) leasesOf(m *machine) ([]string, error) {
	dir, err := os.MkdirTemp(c.base, "leases-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := copyFile(filepath.Join(m.dir, "embedded", "meta.db"), filepath.Join(dir, "meta.db"), 0o600); err != nil {
		return nil, err
	}
	d, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: dir})
	if err != nil {
		return nil, fmt.Errorf("the database of containerd as it is on disk: %w", err)
	}
	leases, err := d.Leases.Names(context.Background())
	return leases, errors.Join(err, d.Close())
}

// idle holds a cluster at which nothing happens to its bounds.
func (c *cluster) idle(round int) {
	before := make([]int, len(c.machines))
	for i, m := range c.machines {
		before[i] = m.store.called()
	}
	c.sleepUntil(time.Now().Add(10 * time.Second))
	c.look()
	for i, m := range c.machines {
		if n := m.store.called() - before[i]; n > quietCalls {
			c.violation("round %d: %s called its store %d times in ten seconds in which nothing happened", round, m.name, n)
		}
	}
	if n := runtime.NumGoroutine(); n > maxGoroutines*len(c.machines) {
		c.violation("round %d: %d goroutines in %d idle nodes", round, n, len(c.machines))
	}
	for _, m := range c.machines {
		for name := range m.tampered { // what came back has to stay
			b, err := os.ReadFile(m.blobPath(name))
			if sum := sha256.Sum256(b); err == nil && hex.EncodeToString(sum[:]) == name {
				delete(m.tampered, name)
				delete(m.rotten, name)
			}
		}
	}
}
