package p2p

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"seeder/internal/figure"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// origin is where the bytes of an announcement came from, in figures of one moment.
type origin struct {
	sources []report.Source
	peers   []string      // that gave bytes, in the order of their first ones
	wire    int64         // bytes of frames that came
	rate    int64         // bytes a second from peers
	took    time.Duration // until it was ready
}

// tally counts where the bytes of one announcement come from on this host, over all
// tries to fetch it, so that what an earlier try has staged is not taken for local.
// It is safe for concurrent use.
type tally struct {
	mu    sync.Mutex
	raw   map[string]int64 // by peer
	order []string
	local int64
	wire  int64
	rate  rate
}

func newTally(now time.Time) *tally {
	return &tally{raw: map[string]int64{}, rate: rate{start: now}}
}

// received books a verified chunk of so many raw bytes, which travelled as wire.
func (t *tally) received(now time.Time, peer string, raw, wire int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.raw[peer]; !known {
		t.order = append(t.order, peer)
	}
	t.raw[peer] += raw
	t.wire += wire
	t.rate.add(now, raw)
}

// travelled books a frame that came in vain.
func (t *tally) travelled(wire int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wire += wire
}

// holds says how many of the wanted bytes are here: those that no peer gave are
// local.
func (t *tally) holds(bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.local = bytes
	for _, raw := range t.raw {
		t.local -= raw
	}
	t.local = max(t.local, 0)
}

// restart begins a new rate.
func (t *tally) restart(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate = rate{start: now}
}

func (t *tally) names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.order...)
}

func (t *tally) origin(now time.Time) origin {
	t.mu.Lock()
	raw, local := maps.Clone(t.raw), t.local
	o := origin{peers: append([]string(nil), t.order...), wire: t.wire, rate: t.rate.perSecond(now)}
	t.mu.Unlock()
	o.sources = sources(raw, local)
	return o
}

// progress is what a fetch shows of itself.
type progress struct {
	image        Image
	wanted       chunk.Bitmap
	total, local int64 // bytes that are wanted, and those of them that were here when it began
	tally        *tally

	mu    sync.Mutex
	state swarm.Progress
}

func newProgress(img Image, t *tally) *progress {
	p := &progress{image: img, wanted: img.Wanted(), tally: t}
	for i := range img.Len() {
		if p.wanted.Has(i) {
			p.total += img.Bytes(i)
		}
	}
	p.local, _ = p.bytes()
	t.holds(p.local)
	t.restart(time.Now())
	return p
}

// arrived: every wanted chunk is here.
func (p *progress) arrived() { p.tally.holds(p.total) }

// bytes sums the wanted chunks that are here.
func (p *progress) bytes() (done, total int64) {
	have := p.image.Have()
	for i := range p.image.Len() {
		if p.wanted.Has(i) && have.Has(i) {
			done += p.image.Bytes(i)
		}
	}
	return done, p.total
}

func (p *progress) set(s swarm.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = s
}

// reason says where a fetch stands: from whom, or why nothing comes.
func (p *progress) reason() string {
	done, total := p.bytes()
	names := p.tally.names()
	p.mu.Lock()
	why := p.state.Reason
	p.mu.Unlock()
	s := fmt.Sprintf("%s of %s", figure.Size(done), figure.Size(total))
	switch {
	case why != "":
		s += ", " + why
	case len(names) > 4:
		s += fmt.Sprintf(" from %d peers", len(names))
	case len(names) > 0:
		s += " from " + strings.Join(names, ", ")
	}
	return s
}
