package delta

import (
	"errors"
	"io"
	"sort"
)

// recentPages is how many pages' headers are kept, so that reading them after the tokens of a
// segment does not decode those again.
const recentPages = 64

// marks is a list that grows without a copy.
type marks struct {
	parts [][]mark // each of marksPerPart but the last
	n     int
}

const marksPerPart = 1024

func (m *marks) add(v mark) {
	if m.n%marksPerPart == 0 {
		m.parts = append(m.parts, make([]mark, 0, marksPerPart))
	}
	last := &m.parts[len(m.parts)-1]
	*last = append(*last, v)
	m.n++
}

func (m *marks) at(i int) *mark { return &m.parts[i/marksPerPart][i%marksPerPart] }

// tokenSource is a gzip base as pages. Their beginnings are learnt on the way: going forward
// reads what is between, once.
type tokenSource struct {
	z      *tokenizer
	marks  marks // of each page that is known, and of the one after
	ended  bool  // the last mark is the end
	next   int   // the page that z would read
	number int   // of the page in t and h; -1: none
	t, h   []byte
	recent [recentPages]struct {
		number int // plus 1
		h      []byte
	}
}

func newTokenSource(r io.ReaderAt, size int64) *tokenSource {
	s := &tokenSource{z: newTokenizer(r, size), number: -1}
	s.marks.add(mark{})
	return s
}

// read decodes page i into t and h. io.EOF: there is none. Every page before it is known.
func (s *tokenSource) read(i int) error {
	if s.number == i {
		return nil
	}
	s.number = -1
	if s.next != i {
		if err := s.z.restore(*s.marks.at(i)); err != nil {
			return err
		}
	}
	s.next = -1
	var err error
	if s.t, s.h, err = s.z.page(s.t[:0], s.h[:0]); err != nil {
		s.ended = s.ended || errors.Is(err, io.EOF)
		return err
	}
	s.next, s.number = i+1, i
	if s.marks.n == i+1 {
		s.marks.add(s.z.mark)
	}
	if r := &s.recent[i%recentPages]; len(s.h) <= 4*pageHeaders {
		r.number, r.h = i+1, append(r.h[:0], s.h...)
	}
	return nil
}

// find is the page that has offset off of a stream.
func (s *tokenSource) find(stream int, off int64) (int, error) {
	behind := func(i int) bool { return s.marks.at(i).at[stream] > off }
	for !s.ended && !behind(s.marks.n-1) {
		if err := s.read(s.marks.n - 1); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	if !behind(s.marks.n - 1) {
		return 0, io.EOF
	}
	return sort.Search(s.marks.n, behind) - 1, nil
}

// view is one stream of a tokenSource.
type view struct {
	s      *tokenSource
	stream int
}

func (v view) find(off int64) (int, error) { return v.s.find(v.stream, off) }

func (v view) end(i int) int64 { return v.s.marks.at(i + 1).at[v.stream] }

func (v view) load(i int, p *page) error {
	s := v.s
	p.at = s.marks.at(i).at[v.stream]
	if r := &s.recent[i%recentPages]; v.stream == 1 && r.number == i+1 {
		p.data = append(p.data[:0], r.h...)
		return nil
	}
	if err := s.read(i); err != nil {
		return err
	}
	if v.stream == 1 {
		p.data = append(p.data[:0], s.h...)
	} else {
		p.data = append(p.data[:0], s.t...)
	}
	return nil
}

// sourcesOf is how a kind reads a base: one source for each stream.
func sourcesOf(kind Kind, base Blob) []source {
	if kind == Deflate {
		s := newTokenSource(base, base.Bytes)
		return []source{view{s, 0}, view{s, 1}}
	}
	return []source{&fileSource{r: base, size: base.Bytes}}
}

// reader gives the streams of a target, segment by segment; all empty: its end.
type reader interface {
	segment(streams [][]byte) error
	// done is how much of the target was read, at most 1.
	done() float64
}

// fileReader: the bytes of a file.
type fileReader struct {
	r         io.ReaderAt
	off, size int64
}

func (f *fileReader) segment(streams [][]byte) error {
	n := int(min(segmentBytes, f.size-f.off))
	streams[0] = grow(streams[0], n)
	f.off += int64(n)
	return readAt(f.r, streams[0], f.off-int64(n))
}

func (f *fileReader) done() float64 { return part01(f.off, f.size) }

// tokenReader: whole pages of a gzip file.
type tokenReader struct {
	z    *tokenizer
	t, h []byte
}

func (r *tokenReader) segment(streams [][]byte) error {
	streams[0], streams[1] = empty(streams[0], segmentBytes+2*pageBytes), empty(streams[1], segmentBytes/2+2*pageBytes)
	for len(streams[0]) < segmentBytes && len(streams[1]) < segmentBytes/2 {
		var err error
		r.t, r.h, err = r.z.page(r.t[:0], r.h[:0])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		streams[0], streams[1] = append(streams[0], r.t...), append(streams[1], r.h...)
	}
	return nil
}

func (r *tokenReader) done() float64 { return part01(r.z.in.at(), r.z.in.size*8) }

func part01(n, of int64) float64 { return float64(n) / float64(max(of, 1)) }

func newReader(kind Kind, target Blob) reader {
	if kind == Deflate {
		return &tokenReader{z: newTokenizer(target, target.Bytes)}
	}
	return &fileReader{r: target, size: target.Bytes}
}
