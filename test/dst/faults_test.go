package dst

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

var storeKinds = []kind{
	{name: "slow", group: stores, weight: 3, begin: func(_ *cluster, m *machine, e Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		s := m.store
		s.set(func(s *faultyStore) { s.slow = time.Duration(20+e.Arg%3000) * time.Millisecond })
		return func() { s.set(func(s *faultyStore) { s.slow = 0 }) }, true
	}},
	{name: "gone", group: stores, weight: 3, begin: forSome(
		func(s *faultyStore) { s.down = true }, func(s *faultyStore) { s.down = false })},
	{name: "hangs", group: stores, weight: 3, begin: forSome(
		func(s *faultyStore) {
			if s.hangs == nil && s.stopAt == 0 {
				s.hangs = make(chan struct{})
			}
		},
		func(s *faultyStore) {
			if s.hangs != nil && !closed(s.stopped) {
				close(s.hangs)
				s.hangs = nil
			}
		})},
	{name: "says it is incomplete", group: stores, weight: 2, begin: forSome(
		func(s *faultyStore) { s.saysGone = true }, func(s *faultyStore) { s.saysGone = false })},
	{name: "says it is complete", group: stores, weight: 2, begin: forSome(
		func(s *faultyStore) { s.saysDone = true }, func(s *faultyStore) { s.saysDone = false })},
	{name: "claims chunks", group: stores, weight: 2, begin: forSome(
		func(s *faultyStore) { s.claims = true }, func(s *faultyStore) { s.claims = false })},
	{name: "sends a wrong bit", group: stores, weight: 2, begin: forSome(
		func(s *faultyStore) { s.garbles = true }, func(s *faultyStore) { s.garbles = false })},
	{name: "import fails", group: stores, weight: 2, begin: forSome(
		func(s *faultyStore) { s.nameErr = errIO }, func(s *faultyStore) { s.nameErr = nil })},
	{name: "garbage collection", group: stores, weight: 4, begin: collected},
	{name: "image removed", group: stores, weight: 3, begin: imageRemoved},
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// collected makes the embedded store collect its garbage at once, which it does when a
// name goes: a bait.
func collected(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	const bait = "docker.io/library/bait:1"
	s := m.store.Store
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandBound)
		defer cancel()
		if _, err := s.ImportArchive(ctx, reader(archive(bait, e.Arg)), ""); err == nil {
			_, _ = s.Remove(ctx, bait)
		}
	})
	return nil, true
}

// imageRemoved is `ctr images rm` of an announced image that another host has, too.
func imageRemoved(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	have, err := m.store.Store.List(context.Background())
	ref := refs()[e.Arg%uint64(len(refs()))]
	if err != nil || have[ref] == "" {
		return nil, false
	}
	complete := func(o *machine) bool {
		theirs, err := o.store.Store.List(context.Background())
		return o != m && err == nil && theirs[ref] == have[ref] && o.complete(have[ref], true) == nil
	}
	if !slices.ContainsFunc(c.running(), complete) {
		return nil, false
	}
	c.touched[have[ref].Encoded()] = true
	m.lose()
	_, err = m.store.Store.Remove(context.Background(), ref)
	return nil, err == nil
}

var crashKinds = []kind{
	{name: "crash", group: crashes, weight: 6, begin: func(c *cluster, m *machine, e Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		c.crashFor(m, time.Duration(e.For)*time.Millisecond)
		return nil, true
	}},
	{name: "crash in a call", group: crashes, weight: 6, counted: true, begin: func(_ *cluster, m *machine, e Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		s := m.store
		s.set(func(s *faultyStore) {
			if s.stopAt == 0 && s.hangs == nil && !closed(s.stopped) {
				s.stopAt = 1 + int(e.Arg%60)
			}
		})
		return func() { s.set(func(s *faultyStore) { s.stopAt = 0 }) }, true
	}},
	{name: "power cut, torn writes", group: crashes, weight: 4, begin: tornCrash},
	{name: "power cut, catalog damaged", group: crashes, weight: 2, begin: catalogLost},
	{name: "all hosts crash", group: crashes, weight: 1, begin: func(c *cluster, _ *machine, e Event) (func(), bool) {
		for i, m := range c.machines {
			if m.up {
				c.crashFor(m, time.Duration(500+e.Arg>>i%8000)*time.Millisecond)
			}
		}
		return nil, true
	}},
	{name: "restart elsewhere", group: crashes, weight: 2, begin: moved},
	{name: "clocks jump a month", group: crashes, weight: 1, begin: clockJumps},
	{name: "restart", group: crashes, weight: 3, begin: func(c *cluster, m *machine, e Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		if err := m.leave(); err != nil {
			c.violation("%v", err)
		}
		c.startAfter(m, time.Duration(e.For)*time.Millisecond/4)
		return nil, true
	}},
}

// moved restarts a host at another address, as with a lease that was lost. The two that
// everybody joins stay where they are.
func moved(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up || m.index < 2 {
		return nil, false
	}
	if err := m.leave(); err != nil {
		c.violation("%v", err)
	}
	m.host = c.net.Host(c.newAddress())
	m.host.SetUp(false)
	c.startAfter(m, time.Duration(e.For)*time.Millisecond/4)
	return nil, true
}

// newAddress is one that no host has had.
func (c *cluster) newAddress() string {
	c.moves++
	return fmt.Sprintf("10.1.%d.%d", c.moves/250, 1+c.moves%250)
}

// clockJumps stops all hosts and starts them again more than a month later: withdrawals
// and leases have lived their time. Faults that are under way end before.
func clockJumps(c *cluster, _ *machine, e Event) (func(), bool) {
	c.endAll()
	c.work.Wait()
	c.poll()
	for _, m := range c.running() {
		if err := m.leave(); err != nil {
			c.violation("%v", err)
		}
	}
	c.zombies.Wait()
	for _, m := range c.machines {
		m.lose() // what is staged is too old then
	}
	time.Sleep(31*24*time.Hour + time.Duration(e.Arg%1000)*time.Minute)
	for _, m := range c.machines {
		c.startAfter(m, time.Duration(e.Arg%3000)*time.Millisecond)
	}
	return nil, true
}

// tornCrash loses or garbles, of what is never synced, some of the end.
func tornCrash(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	c.crashFor(m, time.Duration(e.For)*time.Millisecond)
	m.lose()
	for i, pattern := range []string{"stage/*.frames", "cache/*.frames"} {
		found, _ := filepath.Glob(filepath.Join(m.dir, pattern))
		for k, path := range found {
			arg := e.Arg >> ((i + k) % 16)
			st, err := os.Stat(path)
			if err != nil || st.Size() == 0 {
				continue
			}
			switch arg % 4 {
			case 0:
				_ = os.Truncate(path, int64(arg)%st.Size())
			case 1:
				_ = flip(path, arg)
			case 2:
				_ = os.Remove(path)
			}
		}
	}
	return nil, true
}

// catalogLost damages the catalog of a machine that is down: the file, or one record in it.
// What nobody else has is lost with it; with the file, also which announcements it has
// reached. A purge that it has heard of since may take what it holds then, so that may have
// been the last copy.
func catalogLost(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	have, err := m.store.Store.List(context.Background())
	if err != nil {
		return nil, false
	}
	c.crashFor(m, time.Duration(e.For)*time.Millisecond)
	m.lose()
	path := filepath.Join(m.dir, "catalog.db")
	lost := sortedRefs(m.last)
	one := e.Arg%4 == 3 && len(lost) > 0
	if st, err := os.Stat(path); one {
		ref := lost[e.Arg/4%uint64(len(lost))]
		lost = []string{ref}
		if err := recordRots(path, ref); err != nil {
			c.violation("harness: %v", err)
		}
	} else if err == nil && e.Arg%2 == 0 {
		_ = os.Truncate(path, int64(e.Arg)%st.Size())
	} else {
		for i := range uint64(40) {
			_ = flip(path, e.Arg+i)
		}
	}
	for _, ref := range lost { // a withdrawal that nobody else has is lost, too
		rec := m.last[ref]
		known := func(o *machine) bool { return o.last[ref].Hash() == rec.Hash() }
		if c.graves[ref].Hash() == rec.Hash() && !slices.ContainsFunc(others(c, m), known) {
			delete(c.graves, ref)
		}
		delete(m.last, ref)
	}
	for ref, d := range have {
		if !one || ref == lost[0] {
			m.put(ref, d)
		}
		if !one {
			c.touched[d.Encoded()] = true
		}
	}
	return nil, true
}

// recordRots flips a bit of one record of a catalog that nobody has open.
func recordRots(path, ref string) error {
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return fmt.Errorf("open the catalog: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		records := tx.Bucket([]byte("records"))
		b := bytes.Clone(records.Get([]byte(ref)))
		if len(b) == 0 { // it was taken just now, and is not on disk
			return nil
		}
		b[len(b)/2] ^= 1
		return records.Put([]byte(ref), b)
	})
	return errors.Join(err, db.Close())
}
