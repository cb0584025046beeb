package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The token stream: a run of literals is its length minus 1 and the literals, at most 128; a
// pair is 0x80 | high bits of distance-1, its low bits, length-3. The header stream, for each
// member of a gzip file: 1, the length of its header, the header; its blocks; the bits that pad
// the last one, and the 8 bytes of the trailer. Then 0, and the length and bytes of what is
// behind the last member. A block is its type<<1|final; for type 0 the bits of padding, LEN;
// for type 2 HLIT, HDIST, HCLEN, the lengths of the length codes, and symbols as unpackLengths
// has them; for 1 and 2 then the number of its tokens.
const (
	itemEnd, itemMember = 0, 1
	maxHead             = 128 << 10 // of a member
	maxTail             = 1 << 20   // behind the last member
	pageHeaders         = 16 << 10  // a page ends when it has as many bytes of headers
	pagePacked          = 8 << 10   // bytes of the file that a page has at least, so that marks are few
)

type phase byte

const (
	atMember phase = iota
	atBlock
	inCodes
	inStored
	atEnd
)

// mark is where a page begins: enough to read it without what is before.
type mark struct {
	at     [2]int64 // in tokens and in headers
	bit    int64
	block  int64 // bit where the open block begins
	tokens uint64
	left   int // of a stored block
	phase  phase
	final  bool
}

// tokenizer reads a gzip file as tokens and headers, page by page.
type tokenizer struct {
	in              bitReader
	mark            mark // where the next page begins, and the state within a page
	lit, dist, code table
	fixed           bool // lit and dist are those of a block of type 1
	of              [3]alphabet
	order           [19]uint8
	least           int64  // bit where this page may end
	run             int    // literals of the open run, the last of the page
	long            []byte // for a header that is longer than the buffer of in
}

func newTokenizer(r io.ReaderAt, size int64) *tokenizer {
	z := &tokenizer{in: bitReader{r: r, size: size}, order: codeOrder()}
	z.of[0], z.of[1], z.of[2] = alphabets()
	return z
}

// restore goes to the beginning of a page.
func (z *tokenizer) restore(m mark) error {
	z.run = 0
	if m.phase == inCodes {
		if err := z.in.seek(m.block); err != nil {
			return err
		}
		if _, err := z.block(nil); err != nil {
			return err
		}
	}
	z.mark = m
	return z.in.seek(m.bit)
}

// page reads the next page into t and h. io.EOF: there is none.
func (z *tokenizer) page(t, h []byte) ([]byte, []byte, error) {
	if z.mark.phase == atEnd {
		return t, h, io.EOF
	}
	if z.in.buf == nil {
		if err := z.in.seek(0); err != nil {
			return t, h, err
		}
	}
	z.least = z.in.at() + 8*pagePacked
	var err error
	for z.mark.phase != atEnd {
		// A run of literals may go on over any number of blocks: it ends with the page then.
		if z.full(t, h) && (z.run == 0 || len(h) >= 2*pageHeaders) && z.mark.phase != atMember {
			break
		}
		switch z.mark.phase {
		case atMember:
			h, err = z.member(h)
		case atBlock:
			h, err = z.block(h)
		case inStored:
			t, h, err = z.stored(t, h)
		case inCodes:
			t, h, err = z.tokens(t, h)
		}
		if err != nil {
			return t, h, err
		}
	}
	if z.run > 0 {
		t[len(t)-z.run-1], z.run = byte(z.run-1), 0
	}
	z.mark.at[0] += int64(len(t))
	z.mark.at[1] += int64(len(h))
	z.mark.bit = z.in.at()
	return t, h, nil
}

// full says whether a page of t and h has enough.
func (z *tokenizer) full(t, h []byte) bool {
	return (len(t) >= pageBytes || len(h) >= pageHeaders) && z.in.at() >= z.least
}

// member reads the header of a member, or what is behind the last one.
func (z *tokenizer) member(h []byte) ([]byte, error) {
	n, err := z.head()
	if err != nil {
		return h, err
	}
	if n > 0 {
		h = binary.AppendUvarint(append(h, itemMember), uint64(n))
		z.mark.phase = atBlock
	} else {
		at := z.in.at() / 8
		if at == 0 || z.in.size-at > maxTail {
			return h, fmt.Errorf("no header of gzip that is known at byte %d: %w", at, ErrRefused)
		}
		n = int(z.in.size - at)
		h = binary.AppendUvarint(append(h, itemEnd), uint64(n))
		z.mark.phase = atEnd
	}
	return z.in.raw(h, n)
}

// head is the length of the gzip header that is next, or 0. A file may have one for each few
// bytes, so it is looked for in the buffer; then in as much as that holds; then in the file.
func (z *tokenizer) head() (int, error) {
	p, at := z.in.ahead(), z.in.at()/8
	n, left := gzipHead(p), z.in.size-at
	if n > 0 || left == int64(len(p)) {
		return n, nil
	}
	if err := z.in.more(); err != nil {
		return 0, err
	}
	p = z.in.ahead()
	if n = gzipHead(p); n > 0 || left == int64(len(p)) {
		return n, nil
	}
	z.long = grow(z.long, int(min(maxHead, left)))
	if err := readAt(z.in.r, z.long, at); err != nil {
		return 0, err
	}
	return gzipHead(z.long), nil
}

// gzipHead is the length of the gzip header that p begins with (RFC 1952), or 0.
func gzipHead(p []byte) int {
	if len(p) < 10 || p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || p[3]&0xe0 != 0 {
		return 0
	}
	n := 10
	if p[3]&4 != 0 { // FEXTRA
		if n+2 > len(p) {
			return 0
		}
		n += 2 + int(binary.LittleEndian.Uint16(p[n:]))
	}
	for _, flag := range []byte{8, 16} { // FNAME, FCOMMENT
		for more := p[3]&flag != 0; more; n++ {
			if n >= len(p) {
				return 0
			}
			more = p[n] != 0
		}
	}
	if p[3]&2 != 0 { // FHCRC
		n += 2
	}
	if n > len(p) {
		return 0
	}
	return n
}

// block reads the header of a block.
func (z *tokenizer) block(h []byte) ([]byte, error) {
	z.mark.block, z.mark.tokens = z.in.at(), 0
	v, err := z.in.take(3)
	if err != nil {
		return h, err
	}
	z.mark.final = v&1 == 1
	h = append(h, byte(v))
	switch v >> 1 {
	case 0:
		return z.storedHead(h)
	case 1:
		z.mark.phase = inCodes
		if z.fixed {
			return h, nil
		}
		lit, dist := fixedLengths()
		z.fixed = true
		return h, errors.Join(z.lit.build(lit[:], z.of[0]), z.dist.build(dist[:], z.of[1]))
	case 2:
		z.mark.phase, z.fixed = inCodes, false
		return z.dynamic(h)
	}
	return h, fmt.Errorf("a block of type 3: %w", ErrRefused)
}

func (z *tokenizer) storedHead(h []byte) ([]byte, error) {
	pad, err := z.in.take(z.in.n % 8)
	if err != nil {
		return h, err
	}
	size, err := z.in.take(32)
	if err != nil {
		return h, err
	}
	if uint16(size) != ^uint16(size>>16) {
		return h, fmt.Errorf("a stored block whose length is not what its complement says: %w", ErrRefused)
	}
	z.mark.left, z.mark.phase = int(uint16(size)), inStored
	return append(h, byte(pad), byte(size), byte(size>>8)), nil
}

// dynamic reads the codes of a block of type 2.
func (z *tokenizer) dynamic(h []byte) ([]byte, error) {
	v, err := z.in.take(14)
	if err != nil {
		return h, err
	}
	nlit, ndist, ncode := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > 286 || ndist > 30 {
		return h, fmt.Errorf("%d and %d codes, more than deflate has: %w", nlit, ndist, ErrRefused)
	}
	h = append(h, byte(v&31), byte(v>>5&31), byte(v>>10))
	var lens [19]uint8
	for i := range ncode {
		n, err := z.in.take(3)
		if err != nil {
			return h, err
		}
		lens[z.order[i]] = uint8(n)
		h = append(h, byte(n))
	}
	if err := z.code.build(lens[:], z.of[2]); err != nil {
		return h, err
	}
	all := make([]uint8, 0, 320)
	for len(all) < nlit+ndist {
		if err := z.in.refill(); err != nil {
			return h, err
		}
		e := z.code.entry(z.in.acc)
		if e == 0 {
			return h, fmt.Errorf("a length code that is none: %w", ErrRefused)
		}
		z.in.drop(uint(e & 15))
		s := byte(e >> 16)
		if s >= 16 {
			k := []uint{2, 3, 7}[s-16]
			s = []byte{16, 20, 28}[s-16] + byte(z.in.acc&(1<<k-1))
			z.in.drop(k)
		}
		h = append(h, s)
		if all, err = unpackLengths(all, nlit+ndist, s); err != nil {
			return h, err
		}
	}
	return h, errors.Join(z.lit.build(all[:nlit], z.of[0]), z.dist.build(all[nlit:], z.of[1]))
}

// stored reads on in a stored block, until the page is full or the block ends.
func (z *tokenizer) stored(t, h []byte) ([]byte, []byte, error) {
	for z.mark.left > 0 && (z.run > 0 || !z.full(t, h)) {
		if z.run == 0 {
			t = append(t, 0)
		}
		n := min(z.mark.left, 128-z.run)
		var err error
		if t, err = z.in.copy(t, n); err != nil {
			return t, h, err
		}
		z.mark.left -= n
		if z.run += n; z.run == 128 {
			t[len(t)-129], z.run = 127, 0
		}
	}
	if z.mark.left > 0 {
		return t, h, nil
	}
	h, err := z.endBlock(h)
	return t, h, err
}

// tokens reads on in a block with codes, until the page is full or the block ends.
func (z *tokenizer) tokens(t, h []byte) ([]byte, []byte, error) {
	in := &z.in
	run, count := z.run, z.mark.tokens
	for run > 0 || !z.full(t, h) {
		if in.n < 48 {
			if err := in.refill(); err != nil {
				return t, h, err
			}
		}
		e := z.lit.entry(in.acc)
		in.acc >>= e & 15
		in.n -= uint(e & 15)
		if e&entryLiteral != 0 {
			if run == 0 {
				t = append(t, 0)
			}
			t = append(t, byte(e>>16))
			if run++; run == 128 {
				t[len(t)-129], run = 127, 0
			}
			count++
			continue
		}
		if run > 0 && e&entryPair != 0 {
			t[len(t)-run-1], run = byte(run-1), 0
		}
		if e&entryEnd != 0 {
			z.run = run
			h, err := z.endBlock(binary.AppendUvarint(h, count))
			return t, h, err
		}
		length, distance, ok := z.pair(e)
		if !ok {
			return t, h, fmt.Errorf("a code that is none, or length 258 as 227 and 31: %w", ErrRefused)
		}
		t = append(t, 0x80|byte(distance>>8), byte(distance), byte(length-3))
		count++
	}
	z.run, z.mark.tokens = run, count
	return t, h, nil
}

// pair reads the rest of a pair whose length code has entry e: its length, and its distance
// minus 1.
func (z *tokenizer) pair(e uint32) (length, distance uint32, ok bool) {
	acc := z.in.acc
	extra := e >> 4 & 15
	length = e>>16 + uint32(acc&(1<<extra-1))
	acc >>= extra
	d := z.dist.entry(acc)
	acc >>= d & 15
	more := d >> 4 & 15
	distance = d>>16 + uint32(acc&(1<<more-1)) - 1
	z.in.acc = acc >> more
	z.in.n -= uint(extra + d&15 + more)
	return length, distance, e&d&entryPair != 0 && (length < 258 || extra == 0)
}

// endBlock goes to the next block, or reads the end of the member.
func (z *tokenizer) endBlock(h []byte) ([]byte, error) {
	z.mark.phase = atBlock
	if !z.mark.final {
		return h, nil
	}
	z.mark.phase = atMember
	pad, err := z.in.take(z.in.n % 8)
	if err != nil {
		return h, err
	}
	return z.in.raw(append(h, byte(pad)), 8)
}
