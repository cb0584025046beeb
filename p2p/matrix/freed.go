package matrix

import (
	"slices"
	"sync"
)

// freed is how many bytes of disk the last purges of this node freed. The zero value is
// ready; it is safe for concurrent use.
type freed struct {
	mu    sync.Mutex
	bytes map[string]int64 // by reference
	refs  []string         // the oldest first, at most maxOrigins
}

// add books bytes for ref.
func (f *freed) add(ref string, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bytes == nil {
		f.bytes = map[string]int64{}
	}
	f.refs = append(slices.DeleteFunc(f.refs, func(r string) bool { return r == ref }), ref)
	f.bytes[ref] += bytes
	if len(f.refs) > maxOrigins {
		delete(f.bytes, f.refs[0])
		f.refs = slices.Delete(f.refs, 0, 1)
	}
}

// forget drops what was booked for ref before it is purged once more.
func (f *freed) forget(ref string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.bytes, ref)
	f.refs = slices.DeleteFunc(f.refs, func(r string) bool { return r == ref })
}

// of is what the purge of ref freed, 0 where that is not known any more.
func (f *freed) of(ref string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes[ref]
}
