package delta

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// pageBytes is the length of a page: what one jump in a base costs to read.
	pageBytes = 64 << 10
	// cachePages bounds the pages of a stream in memory: 4 MiB, and 6 where a base has nothing but
	// pairs of 2 bits.
	cachePages = 64
)

// page is a stretch of a base.
type page struct {
	at   int64 // where it begins
	data []byte
}

// source reads the pages of a base, in any order.
type source interface {
	// find is the number of the page that has offset off of the stream. io.EOF: the stream
	// ends before off.
	find(off int64) (int, error)
	// end is the offset behind page i, which find has named.
	end(i int) int64
	// load fills p with page i, which find has named.
	load(i int, p *page) error
}

// spans is a base as a decoder reads it. A span that was returned is valid until the next call.
type spans interface {
	span(off int64) (b []byte, start int64, err error)
}

// fileSource: the bytes of a file.
type fileSource struct {
	r    io.ReaderAt
	size int64
}

func (f *fileSource) find(off int64) (int, error) {
	if off >= f.size {
		return 0, io.EOF
	}
	return int(off / pageBytes), nil
}

func (f *fileSource) end(i int) int64 { return min(int64(i+1)*pageBytes, f.size) }

func (f *fileSource) load(i int, p *page) error {
	p.at = int64(i) * pageBytes
	n := int(min(pageBytes, f.size-p.at))
	p.data = grow(p.data, n)
	return readAt(f.r, p.data, p.at)
}

// readAt fills p.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// cache keeps the pages of a base that were used last, and bounds how many are loaded in all.
// It is deterministic: what Encode's check loads is what every Decode does.
type cache struct {
	src   source
	lru   lru
	pages []page // of each slot of lru
	most  int64  // loads that are allowed
}

// maxLoads is how often a decoder may load a page: each of base and target 16 times, on the
// average. A load costs what reading a page does.
func maxLoads(h Header) int64 { return 16*((h.BaseBytes+h.TargetBytes)/pageBytes) + 1024 }

// errJumps: the delta loads more pages than maxLoads.
var errJumps = fmt.Errorf("it jumps too often in its base: %w", ErrInvalid)

func newCache(src source, h Header) *cache { return &cache{src: src, most: maxLoads(h)} }

// lru says which pages a cache holds.
type lru struct {
	slots []slot
	last  int // the slot that was used last
	clock int64
	loads int64 // pages that were not there, so far
}

type slot struct {
	number int // of its page, -1: none
	used   int64
}

// has says whether page i is there.
func (l *lru) has(i int) bool {
	return slices.ContainsFunc(l.slots, func(s slot) bool { return s.number == i })
}

// use returns the slot of page i; loaded is false where it takes the place of another page.
func (l *lru) use(i int) (at int, loaded bool) {
	l.clock++
	for k := range l.slots {
		if l.slots[k].number == i {
			l.slots[k].used = l.clock
			return k, true
		}
		if l.slots[k].used < l.slots[at].used {
			at = k
		}
	}
	if len(l.slots) < cachePages {
		at = len(l.slots)
		l.slots = append(l.slots, slot{})
	}
	l.loads++
	l.slots[at] = slot{number: i, used: l.clock}
	return at, false
}

// visit is use by a reader that goes from page to page and stays on each.
func (l *lru) visit(i int) {
	if len(l.slots) == 0 || l.slots[l.last].number != i {
		l.last, _ = l.use(i)
	}
}

func newCaches(sources []source, h Header) (out []*cache) {
	for _, s := range sources {
		out = append(out, newCache(s, h))
	}
	return out
}

// span returns the page that has offset off, and where it begins. It is valid
// until the next call. io.EOF: off is outside the stream.
func (c *cache) span(off int64) ([]byte, int64, error) {
	if len(c.pages) > 0 {
		p := &c.pages[c.lru.last]
		if d := off - p.at; d >= 0 && d < int64(len(p.data)) {
			return p.data, p.at, nil
		}
	}
	if off < 0 {
		return nil, 0, io.EOF
	}
	i, err := c.src.find(off)
	if err != nil {
		return nil, 0, err
	}
	p, at, err := c.page(i)
	if err != nil {
		return nil, 0, err
	}
	c.lru.last = at
	return p.data, p.at, nil
}

// number is that of the page that span returned last.
func (c *cache) number() int { return c.lru.slots[c.lru.last].number }

// pageOf is the number of the page that has off, which the stream has, and where the next begins.
func (c *cache) pageOf(off int64) (i int, next int64, err error) {
	if i, err = c.src.find(off); err != nil {
		return 0, 0, err
	}
	return i, c.src.end(i), nil
}

// holds says whether the page that has off is there.
func (c *cache) holds(off int64) bool {
	if off < 0 {
		return false
	}
	i, err := c.src.find(off)
	return err == nil && c.lru.has(i)
}

// page returns page i and its slot, loading it where it is not there.
func (c *cache) page(i int) (*page, int, error) {
	at, loaded := c.lru.use(i)
	if len(c.pages) == at {
		c.pages = append(c.pages, page{})
	}
	p := &c.pages[at]
	if loaded {
		return p, at, nil
	}
	if c.lru.loads > c.most {
		return nil, 0, errJumps
	}
	if err := c.src.load(i, p); err != nil {
		return nil, 0, fmt.Errorf("read the base: %w", err)
	}
	if end := p.at + int64(len(p.data)); end != c.src.end(i) {
		return nil, 0, fmt.Errorf("read the base: page %d ends at %d, and at %d before: %w", i, end, c.src.end(i), ErrMismatch)
	}
	return p, at, nil
}

// checkView is what the decoder that checks a delta reads: it has the bounds of a cache of its own, and
// the pages are the encoder's. Pages of its own would take as much memory again.
type checkView struct {
	c    *cache
	lru  lru
	most int64
	now  page // of c, until c loads another one in its place
}

// span is cache.span.
func (v *checkView) span(off int64) ([]byte, int64, error) {
	if d := off - v.now.at; d >= 0 && d < int64(len(v.now.data)) {
		return v.now.data, v.now.at, nil
	}
	if off < 0 {
		return nil, 0, io.EOF
	}
	i, err := v.c.src.find(off)
	if err != nil {
		return nil, 0, err
	}
	if _, loaded := v.lru.use(i); !loaded && v.lru.loads > v.most {
		return nil, 0, errJumps
	}
	p, _, err := v.c.page(i)
	if err != nil {
		return nil, 0, err
	}
	v.now = *p
	return p.data, p.at, nil
}

// forget is called after the encoder has used c, which may have another page in the place of now.
func (v *checkView) forget() { v.now = page{} }
