package dst

import "maps"

// keptImage is what a machine had of an image when it stopped: chunks that it had verified
// and staged. It fetches none of them again, as long as the image is announced and no
// fault takes what is on the disk (invariant 3).
type keptImage struct {
	record [32]byte
	chunks map[int]bool
}

// took books a chunk that came.
func (s *faultyStore) took(seed string, n, bytes int, staged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received.Add(int64(bytes))
	if !staged {
		return
	}
	if s.puts[seed] == nil {
		s.puts[seed] = map[int]bool{}
	}
	s.puts[seed][n] = true
}

// keep notes what a machine has that stops now.
func (m *machine) keep() {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for _, rec := range m.last {
		a := rec.Announcement()
		seed := a.Seed.Digest.Encoded()
		if a.Withdrawn || len(m.store.puts[seed]) == 0 {
			continue
		}
		k := keptImage{record: rec.Hash(), chunks: maps.Clone(m.store.puts[seed])}
		if before, ok := m.kept[seed]; ok {
			maps.Copy(k.chunks, before.chunks)
		}
		m.kept[seed] = k
		m.c.result.Kept += len(k.chunks)
	}
}

// lose forgets what a machine has: a fault has hit its disk.
func (m *machine) lose() {
	clear(m.kept)
	if m.store != nil {
		m.store.mu.Lock()
		defer m.store.mu.Unlock()
		clear(m.store.puts)
	}
}

// refetched holds machines to what they kept.
func (c *cluster) refetched() {
	for _, m := range c.running() {
		current := map[string][32]byte{}
		for _, rec := range m.last {
			if a := rec.Announcement(); !a.Withdrawn {
				current[a.Seed.Digest.Encoded()] = rec.Hash()
			}
		}
		m.store.mu.Lock()
		for seed, k := range m.kept {
			if current[seed] != k.record {
				delete(m.kept, seed) // released meanwhile, perhaps
				continue
			}
			for n := range k.chunks {
				if m.store.puts[seed][n] {
					c.violation("%s has fetched chunk %d of the image with the seed index %s again, which it had verified before it stopped", m.name, n, seed)
					delete(m.kept, seed)
					break
				}
			}
		}
		m.store.mu.Unlock()
	}
}
