package swarm

import (
	"io"
	"sync/atomic"
)

// Incoming is the memory for one frame on its way in, and how much of it has come. The
// transport fills it; the fetch reads the count at any time.
type Incoming struct {
	Payload []byte
	chunk   int // -1: not one that was asked for
	arrived atomic.Int64
}

// ReadFull fills Payload from r. An r that ends before is io.ErrUnexpectedEOF.
func (in *Incoming) ReadFull(r io.Reader) error {
	_, err := io.ReadFull(io.TeeReader(r, (*arrivals)(&in.arrived)), in.Payload)
	return err
}

// arrivals counts what is written to it.
type arrivals atomic.Int64

// Write implements io.Writer.
func (a *arrivals) Write(p []byte) (int, error) {
	(*atomic.Int64)(a).Add(int64(len(p)))
	return len(p), nil
}

// standing is how far a fetch is, in raw bytes.
type standing struct {
	wanted   int64 // all there is to hold
	held     int64
	put      int64 // of chunks that peers gave in this fetch
	shown    int64 // Progress.Bytes
	received int64 // Progress.Received
}

// recount reads again what is held: chunks come from elsewhere, too, and may be lost.
func (s *standing) recount(c Chunks) {
	before := s.held
	s.wanted, s.held = 0, 0
	wanted, have := c.Wanted(), c.Have()
	wanted.Both(wanted, func(n int) bool {
		s.wanted += c.Bytes(n)
		if have.Has(n) {
			s.held += c.Bytes(n)
		}
		return true
	})
	if s.held < before {
		s.shown = 0
	}
	s.shown = max(s.shown, s.held)
}

// hold records that a peer gave a chunk of so many bytes, which was missing or had come
// from elsewhere meanwhile.
func (s *standing) hold(bytes int64, missing bool) {
	if missing {
		s.held += bytes
	}
	s.put += bytes
	s.shown, s.received = max(s.shown, s.held), max(s.received, s.put)
}

// measure counts what has come of the missing chunks. One that breaks off is asked for
// again from its start: the figures then wait until as much has come again. They reach
// the whole only when the last chunk is verified.
func (s *standing) measure(coming int64) {
	s.shown = max(s.shown, min(s.held+coming, s.wanted-1))
	s.received = max(s.received, s.put+coming)
}

// coming is what has come of the missing chunks. One that is asked for twice counts once,
// as far as the further answer is.
func (e *engine) coming() (bytes int64) {
	counted := map[int]int64{}
	count := func(n int, raw int64) {
		if more := raw - counted[n]; more > 0 {
			counted[n], bytes = raw, bytes+more
		}
	}
	e.todo.verifying.Both(e.todo.missing, func(n int) bool {
		count(n, e.cfg.Chunks.Bytes(n))
		return true
	})
	for _, r := range e.requests {
		in := r.in.Load()
		if in == nil || in.chunk < 0 || len(in.Payload) == 0 || !e.todo.missing.Has(in.chunk) {
			continue
		}
		count(in.chunk, e.cfg.Chunks.Bytes(in.chunk)*in.arrived.Load()/int64(len(in.Payload)))
	}
	return bytes
}

// lend makes r's memory what comes of chunk n.
func (r *request) lend(n int) *Incoming {
	in := &Incoming{Payload: r.buf, chunk: -1}
	if n == r.chunk || r.chunk < 0 && r.want.Has(n) {
		in.chunk = n
	}
	r.in.Store(in)
	return in
}
