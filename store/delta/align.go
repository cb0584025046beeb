package delta

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
)

const (
	// giveUp ends a stretch once it has this many more bytes that differ than bytes that agree,
	// counted from its best end. bsdiff has 8; more bridges what a linker moved.
	giveUp = 32
	// minScore is what a stretch must have, agreeing minus differing bytes, to be worth the
	// four or so bytes that say where it is.
	minScore = 12
	// reach ends a stretch, too, once it has this many bytes behind its best end: where as many
	// bytes agree as differ, the score alone would never end it.
	reach = 1 << 10
	// stepsPerLook is how many steps of align are between two looks at its context.
	stepsPerLook = 64 << 10
	highBits     = 0x8080808080808080
)

// part is a segment: how its bytes come from the old stream.
type part struct {
	bytes int    // of the new stream
	ctrl  []byte // extra bytes, copied bytes, jump from where the last copy ended; again and again
	diff  []byte // new minus old of what is copied
	extra []byte // what is not
}

func (p *part) reset(bytes int) {
	p.bytes, p.ctrl, p.diff, p.extra = bytes, p.ctrl[:0], empty(p.diff, bytes), empty(p.extra, bytes)
}

// aligner finds a new stream in an old one, segment by segment.
type aligner struct {
	old   *cache
	seeds *seeds
	next  int64 // where in the old stream the last copy ended
	part  part
	steps int64 // bytes that align has gone through, each as often as it has

	plan    lru   // the pages that every decoder has when it is here
	allowed int64 // loads of it, for the target so far
}

const (
	// loadBytes is what a stretch must have for each page that decoders load for it, once less
	// than spareLoads are left: at that length the loads last to the end of the target.
	loadBytes  = pageBytes / 16
	spareLoads = 128
	// looks is how many pages the encoder loads for one that decoders may.
	looks = 2
)

// align makes a.part of the next bytes of the new stream.
func (a *aligner) align(ctx context.Context, p []byte) error {
	a.part.reset(len(p))
	done, misses, look := 0, 0, a.steps
	for i := 0; i+seedBytes <= len(p); {
		if a.steps++; a.steps > look {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			look = a.steps + stepsPerLook
		}
		at, err := a.candidate(p[i:], a.next+int64(i-done))
		if err != nil {
			return err
		}
		if at < 0 {
			misses++
			i += 1 + min(misses>>14, 7) // what is new for long is looked at less closely
			continue
		}
		back, err := a.backward(p[done:i], at)
		if err != nil {
			return err
		}
		ahead, score, err := a.forward(p[i:], at)
		if err != nil {
			return err
		}
		if score+back < minScore || ahead == 0 {
			i++
			continue
		}
		pays, err := a.pays(at-int64(back), back+ahead)
		if err != nil {
			return err
		}
		if !pays {
			i += ahead
			continue
		}
		if err := a.copy(p[done:i-back], p[i-back:i+ahead], at-int64(back)); err != nil {
			return err
		}
		i += ahead
		done, misses = i, 0
	}
	if done < len(p) {
		a.part.ctrl = binary.AppendUvarint(a.part.ctrl, uint64(len(p)-done))
		a.part.extra = append(a.part.extra, p[done:]...)
	}
	return nil
}

// pays says whether decoders may load what n bytes at off of the old stream need. So a target
// that is the base in another order costs bytes, not time: what jumps too often travels.
func (a *aligner) pays(off int64, n int) (bool, error) {
	pages, missing := int64(0), false
	for end := off + int64(n); off < end; pages++ {
		i, next, err := a.old.pageOf(off)
		if err != nil {
			return false, err
		}
		missing = missing || !a.plan.has(i)
		off = next
	}
	left := a.allowed - a.plan.loads - pages
	return !missing || left >= 0 && (left >= spareLoads || int64(n) >= pages*loadBytes), nil
}

// candidate is where p may continue in the old stream: where the last copy would go on, else
// where the table has seen its first bytes; -1 is nowhere.
func (a *aligner) candidate(p []byte, expected int64) (int64, error) {
	if ok, err := a.agree(p[:8], expected); ok || err != nil {
		return expected, err
	}
	at := a.seeds.find(p)
	if at < 0 {
		return -1, nil
	}
	ok, err := a.agree(p[:seedBytes], at)
	if !ok {
		at = -1
	}
	return at, err
}

// agree says whether the old stream has p at off, within one page. It does not look where
// the encoder has looked too often.
func (a *aligner) agree(p []byte, off int64) (bool, error) {
	if a.old.lru.loads > looks*a.allowed && !a.old.holds(off) {
		return false, nil
	}
	b, start, err := a.old.span(off)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	b = b[off-start:]
	return len(b) >= len(p) && string(b[:len(p)]) == string(p), nil
}

// forward is how many bytes of p go well with the old stream from off on, and their score.
func (a *aligner) forward(p []byte, off int64) (best, bestScore int, err error) {
	n, score := 0, 0
	for n < len(p) && n <= best+reach {
		b, start, err := a.old.span(off + int64(n))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, 0, err
		}
		b = b[off+int64(n)-start:]
		q := p[n:min(n+len(b), len(p))]
		k := 0
		for k < len(q) && n+k <= best+reach {
			if k+8 <= len(q) && binary.LittleEndian.Uint64(q[k:]) == binary.LittleEndian.Uint64(b[k:]) {
				k, score = k+8, score+8
			} else if q[k] == b[k] {
				k, score = k+1, score+1
			} else {
				k, score = k+1, score-1
			}
			if score > bestScore {
				best, bestScore = n+k, score
			} else if score < bestScore-giveUp {
				a.steps += int64(n + k)
				return best, bestScore, nil
			}
		}
		n += k
	}
	a.steps += int64(n)
	return best, bestScore, nil
}

// backward is how many bytes at the end of p go well with the old stream before off.
func (a *aligner) backward(p []byte, off int64) (int, error) {
	best, bestScore, score := 0, 0, 0
	var b []byte
	var start int64
	for n := 1; n <= len(p) && off >= int64(n) && n <= best+reach; n++ {
		a.steps++
		at := off - int64(n)
		if b == nil || at < start {
			var err error
			if b, start, err = a.old.span(at); err != nil {
				return 0, err
			}
		}
		if p[len(p)-n] == b[at-start] {
			score++
		} else {
			score--
		}
		if score > bestScore {
			best, bestScore = n, score
		} else if score < bestScore-giveUp {
			break
		}
	}
	return best, nil
}

// copy enters a stretch: extra bytes, then p, which is at off of the old stream.
func (a *aligner) copy(extra, p []byte, off int64) error {
	c := &a.part
	c.ctrl = binary.AppendUvarint(c.ctrl, uint64(len(extra)))
	c.ctrl = binary.AppendUvarint(c.ctrl, uint64(len(p)))
	c.ctrl = binary.AppendVarint(c.ctrl, off-a.next)
	c.extra = append(c.extra, extra...)
	a.next = off + int64(len(p))
	for len(p) > 0 {
		b, start, err := a.old.span(off)
		if err != nil {
			return err
		}
		a.plan.visit(a.old.number())
		b = b[off-start:]
		n := min(len(b), len(p))
		at := len(c.diff)
		c.diff = append(c.diff, p[:n]...)
		subtract(c.diff[at:], b[:n])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// subtract takes each byte of b from that of p, which is as long.
func subtract(p, b []byte) {
	i := 0
	for ; i+8 <= len(p); i += 8 {
		x, y := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint64(b[i:])
		binary.LittleEndian.PutUint64(p[i:], ((x|highBits)-(y&^highBits))^((x^^y)&highBits))
	}
	for ; i < len(p); i++ {
		p[i] -= b[i]
	}
}

// add adds each byte of b to that of p, which is as long.
func add(p, b []byte) {
	i := 0
	for ; i+8 <= len(p); i += 8 {
		x, y := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint64(b[i:])
		binary.LittleEndian.PutUint64(p[i:], ((x&^highBits)+(y&^highBits))^((x^y)&highBits))
	}
	for ; i < len(p); i++ {
		p[i] += b[i]
	}
}
