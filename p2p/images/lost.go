package images

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// lost are the seed indexes of announced images that somebody has asked for and
// that are not here. A node that holds the image has lost the index, by a disk that
// rots or by hand, and gets it again: without it nobody can fetch from here.
type lost struct {
	mu    sync.Mutex
	seeds map[digest.Digest]bool
	// tried is when an index was noted last: anyone who asks again and again has no more
	// made here than one in lostPause.
	tried map[digest.Digest]time.Time
}

// lostPause is how long after a try to get a seed index again the next one may begin.
const lostPause = 10 * time.Second

// recordLost records that an announced seed index was asked for and err came of it.
func (s *Set) recordLost(seed digest.Digest, err error) {
	if !errors.Is(err, fs.ErrNotExist) || !s.isAnnounced(seed) {
		return
	}
	l, now := &s.lost, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for tried, at := range l.tried {
		if now.Sub(at) >= lostPause {
			delete(l.tried, tried)
			delete(l.seeds, tried) // nobody here could do anything about it
		}
	}
	if _, early := l.tried[seed]; early {
		return
	}
	if l.seeds == nil {
		l.seeds, l.tried = map[digest.Digest]bool{}, map[digest.Digest]time.Time{}
	}
	l.seeds[seed], l.tried[seed] = true, now
	s.cfg.Lost()
}

// Lost reports whether somebody has asked in vain for a seed index.
func (s *Set) Lost(seed digest.Digest) bool {
	l := &s.lost
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seeds[seed]
}

// TakeLost is Lost, and forgets it.
func (s *Set) TakeLost(seed digest.Digest) bool {
	l := &s.lost
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.seeds[seed]
	delete(l.seeds, seed)
	return was
}
