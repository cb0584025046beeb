package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// word is what is written for a symbol: its code and the extra bits; n is 0 where it has none.
type word struct {
	v uint32
	n uint8
}

// recoder makes a gzip file again from its tokens and headers.
type recoder struct {
	out      bitWriter
	phase    phase
	final    bool
	done     uint64 // tokens of the open block
	left     int    // bytes of the open stored block
	run      int    // literals left of the open run
	lit      [288]word
	length   [256]word // by length-3
	dist     [30]word
	fixed    bool    // lit, length and dist are those of a block of type 1
	of       []uint8 // the symbol of a distance, by distance-1
	lengths  []codeBase
	distance []codeBase
	order    [19]uint8
}

func newRecoder(w io.Writer) *recoder {
	r := &recoder{out: bitWriter{w: w, buf: make([]byte, bitBuffer+64)}, of: make([]uint8, 1<<15), order: codeOrder()}
	r.lengths, r.distance = bases()
	for s, b := range r.distance {
		for i := range 1 << b.extra {
			r.of[b.first-1+i] = uint8(s)
		}
	}
	return r
}

// segment writes what whole pages of the two streams stand for.
func (r *recoder) segment(t, h []byte) error {
	err := r.pages(t, h)
	if errors.Is(err, ErrRefused) {
		return fmt.Errorf("%v: %w", err, ErrInvalid)
	}
	return err
}

// finish writes what is left.
func (r *recoder) finish() error {
	if r.phase != atEnd {
		return fmt.Errorf("the tokens end within a member: %w", ErrInvalid)
	}
	return r.out.room(true)
}

func (r *recoder) pages(t, h []byte) (err error) {
	for len(t) > 0 || len(h) > 0 {
		if err := r.out.room(false); err != nil {
			return err
		}
		switch r.phase {
		case atMember:
			h, err = r.member(h)
		case atBlock:
			h, err = r.block(h)
		case inStored, inCodes:
			t, h, err = r.body(t, h)
		default:
			err = fmt.Errorf("tokens behind the end: %w", ErrInvalid)
		}
		if err != nil {
			return err
		}
	}
	if r.run > 0 {
		return fmt.Errorf("a run of literals that is cut: %w", ErrInvalid)
	}
	return nil
}

// take cuts n bytes from the front of h.
func take(h []byte, n int) ([]byte, []byte, error) {
	if n > len(h) {
		return nil, nil, fmt.Errorf("a header that is cut: %w", ErrInvalid)
	}
	return h[:n], h[n:], nil
}

func (r *recoder) member(h []byte) ([]byte, error) {
	item, h, err := take(h, 1)
	if err != nil {
		return nil, err
	}
	n, err := takeLength(&h, len(h))
	if err != nil {
		return nil, err
	}
	text, h, err := take(h, n) // the length itself is no part of it
	if err != nil {
		return nil, err
	}
	r.phase = atEnd
	if item[0] == itemMember {
		r.phase = atBlock
	}
	return h, r.out.raw(text)
}

func (r *recoder) block(h []byte) ([]byte, error) {
	p, h, err := take(h, 1)
	if err != nil {
		return nil, err
	}
	r.final, r.done = p[0]&1 == 1, 0
	r.out.put(uint64(p[0]&7), 3)
	r.phase = inCodes
	switch p[0] {
	case 0, 1:
		if p, h, err = take(h, 3); err != nil {
			return nil, err
		}
		r.out.put(uint64(p[0]), (8-r.out.n)%8)
		r.out.n, r.out.acc = 0, 0
		size := uint64(p[1]) | uint64(p[2])<<8
		r.out.put(size|(size^0xffff)<<16, 32)
		r.left, r.phase = int(size), inStored
		if r.left == 0 {
			return r.endBlock(h)
		}
		return h, nil
	case 2, 3:
		if r.fixed {
			return h, nil
		}
		lit, dist := fixedLengths()
		r.fixed = true
		return h, r.codes(lit[:], dist[:])
	case 4, 5:
		r.fixed = false
		return r.dynamic(h)
	}
	return nil, fmt.Errorf("a block of type %d: %w", p[0]>>1, ErrInvalid)
}

func (r *recoder) dynamic(h []byte) ([]byte, error) {
	p, h, err := take(h, 3)
	if err != nil {
		return nil, err
	}
	nlit, ndist, ncode := int(p[0])+257, int(p[1])+1, int(p[2])+4
	if nlit > 286 || ndist > 30 || ncode > 19 {
		return nil, fmt.Errorf("%d, %d and %d codes: %w", nlit, ndist, ncode, ErrInvalid)
	}
	r.out.put(uint64(p[0])|uint64(p[1])<<5|uint64(p[2])<<10, 14)
	if p, h, err = take(h, ncode); err != nil {
		return nil, err
	}
	var lens [19]uint8
	for i, n := range p {
		if n > 7 {
			return nil, fmt.Errorf("a length code of %d bits: %w", n, ErrInvalid)
		}
		lens[r.order[i]] = n
		r.out.put(uint64(n), 3)
	}
	var words [19]word
	if err := canon(lens[:], func(s int, code uint32, n uint8) { words[s] = word{code, n} }); err != nil {
		return nil, err
	}
	all := make([]uint8, 0, 320)
	for len(all) < nlit+ndist {
		if p, h, err = take(h, 1); err != nil {
			return nil, err
		}
		if all, err = unpackLengths(all, nlit+ndist, p[0]); err != nil {
			return nil, err
		}
		s, extra, k := p[0], byte(0), uint(0)
		switch {
		case s >= 28:
			s, extra, k = 18, s-28, 7
		case s >= 20:
			s, extra, k = 17, s-20, 3
		case s >= 16:
			s, extra, k = 16, s-16, 2
		}
		if words[s].n == 0 {
			return nil, fmt.Errorf("a length without a code: %w", ErrInvalid)
		}
		r.out.put(uint64(words[s].v)|uint64(extra)<<words[s].n, uint(words[s].n)+k)
	}
	return h, r.codes(all[:nlit], all[nlit:])
}

// codes makes the words of a block.
func (r *recoder) codes(lit, dist []uint8) error {
	r.lit, r.dist, r.length = [288]word{}, [30]word{}, [256]word{}
	err := canon(lit, func(s int, code uint32, n uint8) {
		r.lit[s] = word{code, n}
		if s <= endCode || s >= endCode+1+len(r.lengths) {
			return
		}
		b := r.lengths[s-endCode-1]
		for i := range 1 << b.extra {
			if b.first+i < 258 || b.extra == 0 { // 258 has a code of its own
				r.length[b.first-3+i] = word{code | uint32(i)<<n, n + uint8(b.extra)}
			}
		}
	})
	err2 := canon(dist, func(s int, code uint32, n uint8) { r.dist[s] = word{code, n} })
	return errors.Join(err, err2)
}

// body writes the tokens of the open block that are in t: all, where h does not yet say how
// many there are.
func (r *recoder) body(t, h []byte) ([]byte, []byte, error) {
	most := uint64(math.MaxUint64)
	if r.phase == inStored {
		most = uint64(r.left)
	} else if len(h) > 0 {
		n, k := binary.Uvarint(h)
		if k <= 0 || n < r.done {
			return nil, nil, fmt.Errorf("a block of %d tokens, %d were there already: %w", n, r.done, ErrInvalid)
		}
		most, h = n-r.done, h[k:]
	}
	open := r.phase == inCodes && most == math.MaxUint64
	t, n, err := r.tokens(t, most)
	if err != nil {
		return nil, nil, err
	}
	r.done += n
	r.left -= int(n)
	switch {
	case open, r.phase == inStored && r.left > 0 && len(h) == 0:
		return t, h, nil
	case n < most:
		return nil, nil, fmt.Errorf("%d tokens of %d: %w", n, most, ErrInvalid)
	}
	if r.phase == inCodes {
		if r.lit[endCode].n == 0 {
			return nil, nil, fmt.Errorf("a block whose end has no code: %w", ErrInvalid)
		}
		r.out.put(uint64(r.lit[endCode].v), uint(r.lit[endCode].n))
	}
	h, err = r.endBlock(h)
	return t, h, err
}

func (r *recoder) endBlock(h []byte) ([]byte, error) {
	r.phase = atBlock
	if !r.final {
		return h, nil
	}
	r.phase = atMember
	p, h, err := take(h, 9)
	if err != nil {
		return nil, err
	}
	r.out.put(uint64(p[0]), (8-r.out.n)%8)
	r.out.n, r.out.acc = 0, 0
	return h, r.out.raw(p[1:])
}

// tokens writes at most most tokens from the front of t, and returns how many.
func (r *recoder) tokens(t []byte, most uint64) ([]byte, uint64, error) {
	stored := r.phase == inStored
	var n uint64
	for n < most && len(t) > 0 {
		if err := r.out.room(false); err != nil {
			return nil, n, err
		}
		if r.run == 0 {
			if t[0] >= 0x80 {
				if stored || len(t) < 3 || !r.pair(t) {
					return nil, n, fmt.Errorf("a pair that has no code: %w", ErrInvalid)
				}
				t = t[3:]
				n++
				continue
			}
			r.run, t = int(t[0])+1, t[1:]
		}
		k := int(min(uint64(min(r.run, len(t))), most-n))
		if stored {
			r.out.bytes(t[:k])
		} else if err := r.literals(t[:k]); err != nil {
			return nil, n, err
		}
		n += uint64(k)
		r.run -= k
		t = t[k:]
	}
	return t, n, nil
}

func (r *recoder) literals(p []byte) error {
	for _, b := range p {
		w := r.lit[b]
		if w.n == 0 {
			return fmt.Errorf("literal %d has no code: %w", b, ErrInvalid)
		}
		r.out.put(uint64(w.v), uint(w.n))
	}
	return nil
}

// pair writes the pair that t begins with. false: the block has no code for it.
func (r *recoder) pair(t []byte) bool {
	d := int(t[0]&0x7f)<<8 | int(t[1])
	l, s := r.length[t[2]], r.of[d]
	w := r.dist[s]
	if l.n == 0 || w.n == 0 {
		return false
	}
	b := r.distance[s]
	v := uint64(l.v) | uint64(w.v)<<l.n | uint64(d+1-b.first)<<(l.n+w.n)
	r.out.put(v, uint(l.n)+uint(w.n)+uint(b.extra))
	return true
}
