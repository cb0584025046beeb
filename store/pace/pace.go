// Package pace finds out whether compressing what goes out pays.
//
// It owns the measurements and what follows from them, nothing else: it compresses nothing and
// sends nothing. Invariant: it is about chunks that are compressed here; frames that came from
// others are passed on as they are.
package pace

import (
	"io"
	"sync"
	"time"

	"seeder/store/chunk"
)

const (
	// paceBytes of chunks, as they are stored, make one measurement. As many go out
	// unmeasured after a change: the kernel takes some in advance.
	paceBytes = 8 << 20
	// paceTrial of raw chunks are enough to see that less goes out than before: what the
	// kernel takes in advance only makes them look better.
	paceTrial = 3 << 20
	// paceGain is how many times as much must go out raw. A small gain is enough, since raw
	// chunks also save the CPU of the encoder and of all decoders.
	paceGain = 1.05
	// paceTurns measurements after the last change raw chunks are tried again, and
	// paceRawTurns after it compressed ones: on slow links those are the lesser harm.
	paceTurns    = 64
	paceRawTurns = 8
	// paceSpare: while the encoder works for less than this part of the time, it is not
	// what is waited for: there is time for smaller frames, and raw chunks would only
	// take longer.
	paceSpare = 0.5
	// paceGap is the most that is counted of a time in which nothing happens.
	paceGap = 2 * time.Second
)

// Pace finds out whether compressing pays: by how much goes out in a second of the
// clock, as stored, with it and without. The kernel takes a chunk at once and sends it
// later, so the time until the next one is asked for counts. Whatever the links carry,
// and what else uses the cores, counts with it. It is safe for concurrent use.
type Pace struct {
	mu       sync.Mutex
	raw      bool // chunks go out as they are
	spare    bool // the encoder is not what is waited for
	settling bool // what goes out now is not measured
	encoders int  // that are at work
	last     time.Time
	total    time.Duration // of this measurement
	encoding time.Duration // of it, with an encoder at work
	bytes    int64
	good     [2]float64 // bytes per second, as stored, compressed and raw; 0: not known
	turns    int        // measurements since the last change
}

// New returns a Pace that compresses until it has measured.
func New() *Pace { return &Pace{settling: true} }

// Raw reports whether a chunk for which there is no frame goes out as it is.
func (p *Pace) Raw() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.raw
}

// Ahead is how chunks are compressed that nobody asks for yet, and whether they are.
func (p *Pace) Ahead() (effort chunk.Effort, worth bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spare {
		return chunk.Thorough, true
	}
	return chunk.Fast, !p.raw
}

// Encode is when so many encoders more are at work.
func (p *Pace) Encode(now time.Time, more int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tick(now)
	p.encoders += more
}

// tick moves the clock on. The mutex is held.
func (p *Pace) tick(now time.Time) {
	d := min(now.Sub(p.last), paceGap)
	p.last = now
	p.total += d
	if p.encoders > 0 {
		p.encoding += d
	}
}

// out is when a chunk of so many bytes, as stored, has gone out.
func (p *Pace) out(now time.Time, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tick(now)
	p.bytes += bytes
	if p.raw && p.turns == 0 && p.bytes >= paceTrial && p.rate() < p.good[0] {
		p.measured(p.rate(), 0)
		p.settling = true
		p.bytes, p.total, p.encoding = 0, 0, 0
		return
	}
	if p.bytes < paceBytes {
		return
	}
	if p.settling {
		p.settling = false
	} else {
		p.measured(p.rate(), float64(p.encoding)/float64(max(p.total, time.Microsecond)))
		p.settling = p.turns == 0
	}
	p.bytes, p.total, p.encoding = 0, 0, 0
}

// rate is what goes out in this measurement, in bytes a second as stored. The mutex is held.
func (p *Pace) rate() float64 { return float64(p.bytes) / max(p.total, time.Microsecond).Seconds() }

// measured takes a measurement: the rate, and the part of the time in which an encoder
// was at work. The mutex is held.
func (p *Pace) measured(rate, encoding float64) {
	p.turns++
	if p.raw {
		p.good[1] = rate
		if p.turns >= paceRawTurns || rate < paceGain*p.good[0] {
			p.raw, p.turns = false, 0
		}
		return
	}
	p.good[0], p.spare = rate, encoding < paceSpare
	if !p.spare && (p.turns >= paceTurns || p.good[1] == 0 || p.good[1] > paceGain*rate) {
		p.raw, p.turns = true, 0
	}
}

// Turn has chunks go out as they are, or not, until measurements say otherwise.
func (p *Pace) Turn(raw bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.raw = raw
}

// Measured is r, the frame of a chunk, which tells when all of it has gone out. chunkBytes are
// those of the chunk as it is stored. One goroutine reads it.
func (p *Pace) Measured(r io.ReadCloser, chunkBytes, frameBytes int64) io.ReadCloser {
	return &paced{r, p, chunkBytes, frameBytes}
}

type paced struct {
	io.ReadCloser
	pace  *Pace
	bytes int64 // of the chunk, as stored
	left  int64 // of the frame
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if p.left -= int64(n); p.left <= 0 && n > 0 {
		p.pace.out(time.Now(), p.bytes)
	}
	return n, err
}
