package pace

import (
	"testing"
	"time"

	"seeder/store/chunk"
)

// links carry so many MB as they are stored, on a clock of their own: the encoder makes
// enc MB/s of them while the links carry link MB/s of what shrinks to a half.
func (p *Pace) links(mb int, enc, link float64) (compressed int) {
	now := time.Unix(1, 0)
	p.last = now
	for range mb {
		took := 1 / link
		if !p.Raw() {
			compressed++
			took = max(0.5/link, 1/enc)
			p.Encode(now, 1)
			p.Encode(now.Add(time.Duration(1e9/enc)), -1)
		}
		now = now.Add(time.Duration(took * 1e9))
		p.out(now, 1<<20)
	}
	return compressed
}

// TestPace: chunks go out as they are where more goes out in a second that way, and not
// where the links are what is waited for; frames are small where there is time for it.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what      string
		enc, link float64
		raw       bool
		ahead     chunk.Effort
	}{
		{"10 Mbit/s", 200, 1, false, chunk.Thorough},
		{"200 Mbit/s", 150, 25, false, chunk.Thorough},
		{"200 Mbit/s, busy cores", 35, 25, false, chunk.Fast},
		{"200 Mbit/s, cores that take all of it", 23, 25, true, chunk.Fast},
		{"1 Gbit/s, busy cores", 60, 125, true, chunk.Fast},
		{"1 Gbit/s, cores of its own", 240, 125, false, chunk.Fast},
		{"10 Gbit/s", 240, 1250, true, chunk.Fast},
	} {
		p := New()
		if got := p.links(15, c.enc, c.link); got != 15 {
			t.Errorf("%s: %d of the first 15 MB were compressed", c.what, got)
		}
		p.links(1000, c.enc, c.link)
		compressed := p.links(1000, c.enc, c.link)
		if raw := compressed < 300; raw != c.raw || !raw && compressed < 800 {
			t.Errorf("%s: %d of 1000 MB were compressed (compressed %.0f, raw %.0f)", c.what, compressed, p.good[0]/1e6, p.good[1]/1e6)
		}
		if effort, _ := p.Ahead(); effort != c.ahead {
			t.Errorf("%s: effort %v", c.what, effort)
		}
	}
}

// TestPaceTrial: on a link that is waited for, busy cores make it try raw chunks, and it
// gives up after a few.
func TestPaceTrial(t *testing.T) {
	t.Parallel()
	for _, link := range []float64{1, 12.5} {
		p := New()
		enc := 2 * link / 0.7 // the encoder is at work for 70 % of the time
		if got := p.links(100, enc, link); got < 95 || got == 100 {
			t.Errorf("%.1f MB/s: %d of 100 MB were compressed, want all but a few", link, got)
		}
		if got := p.links(100, enc, link); got != 100 {
			t.Errorf("%.1f MB/s: %d of the next 100 MB were compressed", link, got)
		}
	}
}

// TestPaceTurns: it turns with the links.
func TestPaceTurns(t *testing.T) {
	t.Parallel()
	p := New()
	for range 3 {
		p.links(400, 60, 500)
		if got := p.links(100, 60, 500); got > 50 {
			t.Errorf("fast links: %d of 100 MB were compressed", got)
		}
		p.links(400, 60, 5)
		if got := p.links(100, 60, 5); got != 100 {
			t.Errorf("slow links: %d of 100 MB were compressed", got)
		}
	}
}
