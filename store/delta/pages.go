package delta

import (
	"errors"
	"fmt"
	"io"
)

const (
	// pageBytes is the length of a page: what one jump in a base costs to read.
	pageBytes = 64 << 10
	// cachePages bounds the pages of a stream in memory: 4 MiB.
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
	// load fills p with page i, which find has named.
	load(i int, p *page) error
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
// It is deterministic: what Encode's check may load is what every Decode may.
type cache struct {
	src   source
	slots []slot
	last  int // the slot that was used last
	clock int64
	left  int64 // loads that are still allowed
}

type slot struct {
	number int // of its page, -1: none
	used   int64
	page   page
}

// newCache: a decoder may load each page of base and target 16 times, on the average.
func newCache(src source, h Header) *cache {
	return &cache{src: src, left: 16*((h.BaseBytes+h.TargetBytes)/pageBytes) + 1024}
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
	if len(c.slots) > 0 {
		p := &c.slots[c.last].page
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
	at, err := c.slot(i)
	if err != nil {
		return nil, 0, err
	}
	c.last = at
	p := &c.slots[at].page
	return p.data, p.at, nil
}

// slot returns the slot that has page i, loading it where none does.
func (c *cache) slot(i int) (int, error) {
	c.clock++
	oldest := 0
	for k := range c.slots {
		if c.slots[k].number == i {
			c.slots[k].used = c.clock
			return k, nil
		}
		if c.slots[k].used < c.slots[oldest].used {
			oldest = k
		}
	}
	if c.left--; c.left < 0 {
		return 0, fmt.Errorf("it jumps too often in its base: %w", ErrInvalid)
	}
	if len(c.slots) < cachePages {
		oldest = len(c.slots)
		c.slots = append(c.slots, slot{})
	}
	b := &c.slots[oldest]
	b.number, b.used = -1, c.clock
	if err := c.src.load(i, &b.page); err != nil {
		return 0, fmt.Errorf("read the base: %w", err)
	}
	b.number = i
	return oldest, nil
}

// shared is a source over another cache: the decoder that checks a delta has the bounds of
// its own, and the pages that the encoder has read already.
type shared struct{ c *cache }

func (v shared) find(off int64) (int, error) { return v.c.src.find(off) }

func (v shared) load(i int, p *page) error {
	k, err := v.c.slot(i)
	if err != nil {
		return err
	}
	from := &v.c.slots[k].page
	p.at = from.at
	p.data = append(p.data[:0], from.data...)
	return nil
}
