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
}

func newProgress(img images.Image, t *tally.Tally) *progress {
	p := &progress{image: img, wanted: img.Wanted(), tally: t}
	for i := range img.Len() {
		if p.wanted.Has(i) {
			p.total += img.Bytes(i)
		}
	}
	p.local, _ = p.bytes()
	t.Holds(p.local)
	t.Restart(time.Now())
	return p
}

// arrived: every wanted chunk is here.
func (p *progress) arrived() { p.tally.Holds(p.total) }

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
	names := p.tally.Names()
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
