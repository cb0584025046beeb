package delta

import (
	"fmt"
	"math/bits"
)

const (
	rootBits = 10 // of the first table of a decoder; 5 more in the second
	codeBits = 15 // the longest code of deflate (RFC 1951)
	endCode  = 256

	entryLiteral = 1 << 9 // entry: length of the code, extra bits << 4, one of these, value << 16
	entrySecond  = 1 << 10
	entryEnd     = 1 << 11
	entryPair    = 1 << 12
)

// alphabet is what the codes of one table stand for: an entry without its length for each.
type alphabet []uint32

// alphabets are those of deflate: literals and lengths, distances, lengths of codes.
func alphabets() (lit, dist, plain alphabet) {
	for i := range 256 {
		lit = append(lit, entryLiteral|uint32(i)<<16)
	}
	lit = append(lit, entryEnd)
	lengths, distances := bases()
	for _, b := range lengths {
		lit = append(lit, entryPair|uint32(b.extra)<<4|uint32(b.first)<<16)
	}
	for _, b := range distances {
		dist = append(dist, entryPair|uint32(b.extra)<<4|uint32(b.first)<<16)
	}
	for i := range 19 {
		plain = append(plain, entryLiteral|uint32(i)<<16)
	}
	return lit, dist, plain
}

type codeBase struct{ first, extra int }

// bases are the lengths and distances of RFC 1951, 3.2.5.
func bases() (lengths, distances []codeBase) {
	for first, i := 3, 0; i < 28; i++ {
		extra := max(0, i/4-1)
		lengths = append(lengths, codeBase{first, extra})
		first += 1 << extra
	}
	lengths = append(lengths, codeBase{258, 0})
	for first, i := 1, 0; i < 30; i++ {
		extra := max(0, i/2-1)
		distances = append(distances, codeBase{first, extra})
		first += 1 << extra
	}
	return lengths, distances
}

// canon calls f with each symbol that has a code and its code as the stream has it. It
// refuses lengths of which no code can be made. Codes may be left over.
func canon(lens []uint8, f func(symbol int, code uint32, n uint8)) error {
	var count, next [codeBits + 1]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	left, code := 1, 0
	for n := 1; n <= codeBits; n++ {
		code = (code + count[n-1]) << 1
		next[n] = code
		if left = left<<1 - count[n]; left < 0 {
			return fmt.Errorf("more codes than there are: %w", ErrRefused)
		}
	}
	for s, n := range lens {
		if n > 0 {
			f(s, uint32(bits.Reverse16(uint16(next[n]))>>(16-n)), n)
			next[n]++
		}
	}
	return nil
}

// table decodes one Huffman code: entries by the next bits, in two steps where a code is long.
// A 0 is no code.
type table struct {
	root   [1 << rootBits]uint32
	second []uint32
}

func (t *table) build(lens []uint8, of alphabet) error {
	t.second = t.second[:0]
	clear(t.root[:])
	return canon(lens, func(s int, code uint32, n uint8) {
		if s >= len(of) {
			return // symbols 286 and 287 may have a code and not be used
		}
		e := of[s] | uint32(n)
		if n <= rootBits {
			for j := code; j < 1<<rootBits; j += 1 << n {
				t.root[j] = e
			}
			return
		}
		r := &t.root[code&(1<<rootBits-1)]
		if *r == 0 {
			*r = entrySecond | uint32(len(t.second))<<16
			t.second = append(t.second, make([]uint32, 1<<(codeBits-rootBits))...)
		}
		at := *r >> 16
		for j := code >> rootBits; j < 1<<(codeBits-rootBits); j += 1 << (n - rootBits) {
			t.second[at+j] = e
		}
	})
}

// entry is that of the next bits.
func (t *table) entry(acc uint64) uint32 {
	e := t.root[acc&(1<<rootBits-1)]
	if e&entrySecond != 0 {
		e = t.second[e>>16+uint32(acc>>rootBits)&(1<<(codeBits-rootBits)-1)]
	}
	return e
}

// fixedLengths are the codes of a block of type 1.
func fixedLengths() (lit [288]uint8, dist [30]uint8) {
	for i := range lit {
		switch {
		case i < 144 || i >= 280:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		default:
			lit[i] = 7
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	return lit, dist
}

// codeOrder is the order in which a block gives the lengths of its length codes.
func codeOrder() [19]uint8 {
	return [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
}

// unpackLengths makes lengths of the symbols of a block header, one byte each: a length; 16 to
// 19: the last one 3 to 6 times; 20 to 27: 3 to 10 zeros; 28 to 155: 11 to 138 zeros.
func unpackLengths(out []uint8, n int, symbol byte) ([]uint8, error) {
	value, times := symbol, 1
	switch {
	case symbol < 16:
	case symbol < 20:
		if len(out) == 0 {
			return nil, fmt.Errorf("a length is repeated before the first: %w", ErrRefused)
		}
		value, times = out[len(out)-1], int(symbol)-13
	default:
		value, times = 0, int(symbol)-17
	}
	if symbol > 155 || len(out)+times > n {
		return nil, fmt.Errorf("more lengths of codes than the block has: %w", ErrRefused)
	}
	for range times {
		out = append(out, value)
	}
	return out, nil
}
