package fetch

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"seeder/internal/figure"
	"seeder/p2p/images"
	"seeder/p2p/swarm"
	"seeder/p2p/tally"
	"seeder/store/chunk"
)

// progress is what a fetch shows of itself.
type progress struct {
	image        images.Image
	wanted       chunk.Bitmap
	total, local int64 // bytes that are wanted, and those of them that were here when it began
	tally        *tally.Tally

	mu    sync.Mutex
	state swarm.Progress
	now   string // what is done about a delta; empty: nothing

	came chunk.Bitmap // chunks that came, or were rebuilt, since restart
	made int64        // bytes of them that were rebuilt
}

func newProgress(img images.Image, t *tally.Tally) *progress {
	p := &progress{image: img, wanted: img.Wanted(), tally: t}
	for i := range img.Len() {
		if p.wanted.Has(i) {
			p.total += img.Bytes(i)
		}
	}
	p.local, _ = p.held()
	t.Holds(p.local)
	t.Restart(time.Now())
	return p
}

// restart begins to count chunks anew: what is lost comes again.
func (p *progress) restart() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = chunk.NewBitmap(p.image.Len())
}

// first reports whether chunk n has come for the first time, either way, and notes it.
func (p *progress) first(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.came.Has(n) {
		return false
	}
	p.came.Set(n)
	return true
}

// rebuilt: a chunk of so many bytes was made from a delta.
func (p *progress) rebuilt(bytes int64) {
	p.tally.Rebuilt(bytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made += bytes
}

// missing are the wanted bytes that are not here.
func (p *progress) missing() int64 {
	done, total := p.held()
	return total - done
}

// here are the wanted bytes that are here, with what has come of those under way, and how many
// of them were rebuilt.
func (p *progress) here() (bytes, rebuilt int64) {
	p.mu.Lock()
	rebuilt = p.made // before: what is counted with it is here
	p.mu.Unlock()
	bytes, _ = p.bytes()
	return bytes, rebuilt
}

// arrived: every wanted chunk is here.
func (p *progress) arrived() { p.tally.Holds(p.total) }

// fetched is how much came: what was rebuilt counts with the deltas that it was made of.
func (p *progress) fetched() int64 {
	o := p.tally.Origin(time.Now())
	return p.total - p.local - o.Rebuilt + o.Delta
}

// importing says how far the import is once every chunk is here.
func (p *progress) importing() string {
	const here = "all data received, unpacking"
	if k, of := p.image.Unpacked(); of > 0 {
		return fmt.Sprintf("%s layer %d of %d", here, min(k+1, of), of)
	}
	return here
}

// bytes sums the wanted chunks that are here and what has come of those under way.
func (p *progress) bytes() (done, total int64) {
	done, total = p.held()
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(done, p.state.Bytes), total
}

// held sums the wanted chunks that are here.
func (p *progress) held() (done, total int64) {
	have := p.image.Have()
	for i := range p.image.Len() {
		if p.wanted.Has(i) && have.Has(i) {
			done += p.image.Bytes(i)
		}
	}
	return done, p.total
}

// set takes what the swarm says of itself. A swarm that runs again counts from 0.
func (p *progress) set(s swarm.Progress) {
	p.mu.Lock()
	before := p.state.Received
	p.state = s
	p.mu.Unlock()
	if s.Received < before {
		before = 0
	}
	p.tally.Arrived(time.Now(), s.Received-before)
}

// doing says what is done about a delta; empty: nothing.
func (p *progress) doing(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = what
}

// noDelta notes why a layer did not come as a delta.
func (p *progress) noDelta(why string) { p.tally.NoDelta(why) }

// reason says where a fetch stands: from whom, or why nothing comes.
func (p *progress) reason() string {
	done, total := p.bytes()
	names := p.tally.Names()
	p.mu.Lock()
	why := p.state.Reason
	if p.now != "" {
		why = p.now
	}
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
