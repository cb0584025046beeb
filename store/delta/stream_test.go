package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
	"time"
)

// token is a literal, or a pair where length is not 0.
type token struct {
	literal          byte
	length, distance int
}

// writerOfGzip writes gzip files by chance that are valid (RFC 1951 and 1952) and that no
// compressor would write: all types of blocks, also empty ones, codes that are too long, lengths of
// codes written in odd ways, bits of padding that are not zero, and every field of a header.
type writerOfGzip struct {
	r       *rand.Rand
	phrases [][]token // streams that share them have something for a delta
	out     []byte
	acc     uint64
	n       uint
	plain   []byte // of the open member

	lengths, distances []codeBase
	symbol             [2][1<<15 + 1]int16 // of each length and distance
}

func newWriterOfGzip(r, shared *rand.Rand) *writerOfGzip {
	w := &writerOfGzip{r: r}
	w.lengths, w.distances = bases()
	for i, of := range [][]codeBase{w.lengths, w.distances} {
		for s, b := range of {
			for n := b.first; n < min(b.first+1<<b.extra, len(w.symbol[i])); n++ {
				w.symbol[i][n] = int16(s)
			}
		}
	}
	for range 30 {
		p := make([]token, 1+shared.IntN(200))
		for i := range p {
			switch shared.IntN(4) {
			case 0:
				p[i] = token{length: 3 + shared.IntN(8), distance: 1 + shared.IntN(100)}
			case 1:
				p[i] = token{length: 3 + shared.IntN(256), distance: 1 + shared.IntN(1<<15)}
			default:
				p[i] = token{literal: byte(shared.IntN(1 << (1 + shared.IntN(8))))}
			}
		}
		w.phrases = append(w.phrases, p)
	}
	return w
}

func (w *writerOfGzip) put(v uint64, k int) {
	w.acc |= v << w.n
	for w.n += uint(k); w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.acc))
		w.acc >>= 8
	}
}

// align pads to a byte, mostly with zeros.
func (w *writerOfGzip) align() {
	if k := int(8-w.n) % 8; w.r.IntN(4) == 0 {
		w.put(w.r.Uint64()&(1<<k-1), k)
	} else {
		w.put(0, k)
	}
}

// file is a gzip file of some members, without what may be behind them.
func (w *writerOfGzip) file(blocks, tokens int) []byte {
	for range 1 + w.r.IntN(3) {
		w.head()
		w.plain = w.plain[:0]
		for i := range blocks {
			w.block(i == blocks-1, w.r.IntN(tokens+1))
		}
		w.align()
		w.out = binary.LittleEndian.AppendUint32(w.out, crc32.ChecksumIEEE(w.plain))
		w.out = binary.LittleEndian.AppendUint32(w.out, uint32(len(w.plain)))
	}
	return w.out
}

func (w *writerOfGzip) head() {
	at, flags := len(w.out), byte(w.r.IntN(32))
	w.out = append(w.out, 0x1f, 0x8b, 8, flags, byte(w.r.Uint32()), 2, 3, 4, byte(w.r.Uint32()), 255)
	if flags&4 != 0 {
		n := w.r.IntN(1 << w.r.IntN(16))
		w.out = binary.LittleEndian.AppendUint16(w.out, uint16(n))
		for range n {
			w.out = append(w.out, byte(w.r.Uint32()))
		}
	}
	for _, f := range []byte{8, 16} {
		if flags&f != 0 {
			w.out = append(append(w.out, "name-or-comment"[:w.r.IntN(16)]...), 0)
		}
	}
	if flags&2 != 0 {
		w.out = binary.LittleEndian.AppendUint16(w.out, uint16(crc32.ChecksumIEEE(w.out[at:])))
	}
}

func (w *writerOfGzip) block(final bool, tokens int) {
	kind := w.r.IntN(3)
	if w.r.IntN(6) == 0 {
		tokens = 0
	}
	last := uint64(0)
	if final {
		last = 1
	}
	w.put(last|uint64(kind)<<1, 3)
	if kind == 0 {
		w.storedBlock(min(tokens, 65535))
		return
	}
	list := w.tokens(tokens)
	lit, dist := fixedLengths()
	l, d := lit[:], dist[:]
	if kind == 2 {
		l, d = w.dynamic(list)
	}
	w.write(list, l, d)
}

func (w *writerOfGzip) storedBlock(n int) {
	w.align()
	w.out = binary.LittleEndian.AppendUint16(w.out, uint16(n))
	w.out = binary.LittleEndian.AppendUint16(w.out, ^uint16(n))
	for len(w.out) > 0 && n > 0 {
		for _, t := range w.phrases[w.r.IntN(len(w.phrases))] {
			if n > 0 {
				w.out, w.plain, n = append(w.out, t.literal), append(w.plain, t.literal), n-1
			}
		}
	}
}

// tokens are about n whose pairs lie in what is there already.
func (w *writerOfGzip) tokens(n int) (out []token) {
	for len(out) < n {
		for _, t := range w.phrases[w.r.IntN(len(w.phrases))] {
			if t.length > 0 && t.distance > len(w.plain) {
				t = token{literal: byte(t.length)}
			}
			if t.length == 0 {
				w.plain = append(w.plain, t.literal)
			}
			for range t.length {
				w.plain = append(w.plain, w.plain[len(w.plain)-t.distance])
			}
			out = append(out, t)
		}
	}
	return out
}

// lengthsOf are lengths of a complete code by chance, none above most, for the symbols that are
// used and some that are not, of n.
func (w *writerOfGzip) lengthsOf(used []bool, n, most int) []uint8 {
	var symbols []int
	extra := w.r.IntN(3) == 0
	for s := range n {
		if s < len(used) && used[s] || extra && w.r.IntN(4) == 0 {
			symbols = append(symbols, s)
		}
	}
	for s := 0; len(symbols) < 2; s++ { // two symbols make a code complete
		if s >= len(used) || !used[s] {
			symbols = append(symbols, s)
		}
	}
	depths := []uint8{1, 1}
	for len(depths) < len(symbols) {
		i := w.r.IntN(len(depths))
		if w.r.IntN(2) == 0 {
			i = len(depths) - 1 // the last made goes deep
		}
		for int(depths[i]) >= most {
			i = w.r.IntN(len(depths))
		}
		depths[i]++
		depths = append(depths, depths[i])
	}
	w.r.Shuffle(len(depths), func(i, j int) { depths[i], depths[j] = depths[j], depths[i] })
	out := make([]uint8, n)
	for i, s := range symbols {
		out[s] = depths[i]
	}
	return out
}

// dynamic writes the header of a block of type 2.
func (w *writerOfGzip) dynamic(list []token) (lit, dist []uint8) {
	usedLit, usedDist := make([]bool, 286), make([]bool, 30)
	usedLit[endCode] = true
	for _, t := range list {
		if t.length == 0 {
			usedLit[t.literal] = true
			continue
		}
		usedLit[endCode+1+w.symbol[0][t.length]], usedDist[w.symbol[1][t.distance]] = true, true
	}
	lit = w.lengthsOf(usedLit, 286, codeBits)
	dist = w.lengthsOf(usedDist, 30, codeBits)
	if distances := bytes.Count(boolBytes(usedDist), []byte{1}); distances < 2 && w.r.IntN(2) == 0 {
		dist = boolBytes(usedDist) // no distance has a code, or the only one has one of a bit
	}
	lit, dist = w.shorten(lit, 257), w.shorten(dist, 1)

	symbols := w.symbols(append(bytes.Clone(lit), dist...))
	used := make([]bool, 19)
	for _, s := range symbols {
		used[s[0]] = true
	}
	code := w.lengthsOf(used, 19, 7)
	order, ncode := codeOrder(), 19
	for ncode > 4 && code[order[ncode-1]] == 0 && w.r.IntN(8) > 0 {
		ncode--
	}
	w.put(uint64(len(lit)-257)|uint64(len(dist)-1)<<5|uint64(ncode-4)<<10, 14)
	for i := range ncode {
		w.put(uint64(code[order[i]]), 3)
	}
	words := wordsOf(code)
	for _, s := range symbols {
		w.put(uint64(words[s[0]].v), int(words[s[0]].n))
		if s[0] >= 16 {
			w.put(uint64(s[1]), []int{2, 3, 7}[s[0]-16])
		}
	}
	return lit, dist
}

// shorten cuts zeros at the end: some, all, or none.
func (w *writerOfGzip) shorten(lens []uint8, least int) []uint8 {
	keep := w.r.IntN(2) == 0
	for len(lens) > least && lens[len(lens)-1] == 0 && (!keep || w.r.IntN(8) > 0) {
		lens = lens[:len(lens)-1]
	}
	return lens
}

// symbols are the lengths as a block has them: symbol and extra bits. Where a run may be written
// as one, it is cut by chance.
func (w *writerOfGzip) symbols(lens []uint8) (out [][2]int) {
	for i := 0; i < len(lens); {
		n := 1
		for i+n < len(lens) && lens[i+n] == lens[i] {
			n++
		}
		switch {
		case lens[i] == 0 && n >= 3 && w.r.IntN(4) > 0:
			n = min(3+w.r.IntN(n-2), 138)
			if n <= 10 {
				out = append(out, [2]int{17, n - 3})
			} else {
				out = append(out, [2]int{18, n - 11})
			}
		case i > 0 && lens[i-1] == lens[i] && n >= 3 && w.r.IntN(4) > 0:
			n = min(3+w.r.IntN(n-2), 6)
			out = append(out, [2]int{16, n - 3})
		default:
			n = 1
			out = append(out, [2]int{int(lens[i]), 0})
		}
		i += n
	}
	return out
}

func boolBytes(of []bool) []uint8 {
	out := make([]uint8, len(of))
	for i, b := range of {
		if b {
			out[i] = 1
		}
	}
	return out
}

func wordsOf(lens []uint8) []word {
	words := make([]word, 320)
	if err := canon(lens, func(s int, code uint32, n uint8) { words[s] = word{code, n} }); err != nil {
		panic(err)
	}
	return words
}

func (w *writerOfGzip) write(list []token, lit, dist []uint8) {
	l, d := wordsOf(lit), wordsOf(dist)
	for _, t := range list {
		if t.length == 0 {
			w.put(uint64(l[t.literal].v), int(l[t.literal].n))
			continue
		}
		s := w.symbol[0][t.length]
		w.put(uint64(l[endCode+1+s].v), int(l[endCode+1+s].n))
		w.put(uint64(t.length-w.lengths[s].first), w.lengths[s].extra)
		s = w.symbol[1][t.distance]
		w.put(uint64(d[s].v), int(d[s].n))
		w.put(uint64(t.distance-w.distances[s].first), w.distances[s].extra)
	}
	w.put(uint64(l[endCode].v), int(l[endCode].n))
}

// gzipByChance is a valid gzip file and what is behind it.
func gzipByChance(t testing.TB, r, shared *rand.Rand) []byte {
	blocks, tokens := 1+r.IntN(8), r.IntN(1<<(1+r.IntN(12)))
	if r.IntN(20) == 0 {
		blocks, tokens = 3, 100_000 // pages end within blocks, and a segment
	}
	out := newWriterOfGzip(r, shared).file(blocks, tokens)
	z, err := stdgzip.NewReader(bytes.NewReader(out))
	if err == nil {
		_, err = io.Copy(io.Discard, z)
	}
	if err != nil {
		t.Fatalf("what the test wrote is not gzip: %v", err)
	}
	if r.IntN(3) == 0 {
		for range r.IntN(1 << r.IntN(12)) {
			out = append(out, byte(r.Uint32()))
		}
	}
	return out
}

// TestStreamsByChance: any valid gzip file comes back to the bit, with any other as its base;
// and one of which a few bits were changed comes back, too, or is refused when it is encoded.
func TestStreamsByChance(t *testing.T) {
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		t.Logf("seed %d", seed)
		refused, kept := 0, 0
		for i := range uint64(60) {
			r := rand.New(rand.NewPCG(seed, i))
			phrases := rand.NewPCG(seed, i/4)
			base := gzipByChance(t, r, rand.New(phrases))
			phrases.Seed(seed, i/4)
			target := gzipByChance(t, r, rand.New(phrases))
			roundTripAs(t, Deflate, base, target)

			for range 3 {
				target[r.IntN(len(target))] ^= 1 << r.IntN(8)
			}
			var delta, out bytes.Buffer
			_, _, err := Encode(context.Background(), &delta, Deflate, blob(base), blob(target), 0)
			if errors.Is(err, ErrRefused) {
				refused++
				continue
			}
			if err == nil {
				_, err = Decode(context.Background(), &out, &delta, blob(base))
			}
			if err != nil || !bytes.Equal(out.Bytes(), target) {
				t.Fatalf("seed %d, pair %d, with bits changed: %v", seed, i, err)
			}
			kept++
		}
		t.Logf("with bits changed: %d came back, %d were refused", kept, refused)
		if refused == 0 || kept == 0 {
			t.Error("one of both never happened")
		}
		if t.Failed() {
			return
		}
	}
}
