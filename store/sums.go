package store

import (
	"sync"

	"seeder/store/ctrd"
)

// sums are the files, by stage.Name, from which this process made the sums of a blob's
// chunks: nobody needs to verify them again before they are served. It is safe for
// concurrent use.
type sums struct {
	mu sync.Mutex
	of map[string]ctrd.Stamp
}

// get is the file from which the sums of a blob were made; zero: none is known.
func (s *sums) get(name string) ctrd.Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[name]
}

// set notes the file from which the sums of a blob were made; zero: forget it.
func (s *sums) set(name string, stamp ctrd.Stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[name] = stamp; stamp == (ctrd.Stamp{}) {
		delete(s.of, name)
	}
}
