package swarm

import (
	"flag"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// `make sim` prints the whole table; one line of it:
// go test -run TestSimulation/nodes=1000 ./p2p/swarm -sim full -v
var (
	simSize = flag.String("sim", "small", "simulations to run: small, or full, which prints a table")
	simRand = flag.Uint64("sim.seed", 1, "seed of the simulations; the same one gives the same table")
)

// gbit is 1 Gbit/s in chunks of 1 MiB a second.
const gbit = 125.0

// crowdCase is a flash crowd: nodes-1 nodes fetch from one source, all at once.
type crowdCase struct {
	nodes, chunks int
	up, down      float64 // Gbit/s of every link
	rtt           time.Duration
	mixed         bool // the round trip times are spread from 0.2 to 50 ms
	slow          int  // per cent of the nodes, with a tenth of the uplink
	slowDown      bool // … and of the downlink
	leave         int  // per cent of the nodes, midway
	late          bool // one more node joins midway

	atMost float64 // makespan/optimum
	source float64 // images that leave the source
}

func (c crowdCase) trouble() string {
	s := ""
	add := func(when bool, format string, args ...any) {
		if when && s != "" {
			s += ", "
		}
		if when {
			s += fmt.Sprintf(format, args...)
		}
	}
	add(c.slow > 0 && !c.slowDown, "%d %% slow up", c.slow)
	add(c.slow > 0 && c.slowDown, "%d %% slow up and down", c.slow)
	add(c.leave > 0, "%d %% leave", c.leave)
	add(c.late, "late joiner")
	return s
}

func (c crowdCase) latency() string {
	if c.mixed {
		return "0.2-50 ms"
	}
	return fmt.Sprintf("%g ms", c.rtt.Seconds()*1000)
}

func (c crowdCase) rates() string { return fmt.Sprintf("%g/%g", c.up*1000, c.down*1000) }

// optimum is K + ⌈log2 N⌉ - 1 chunk times (Mundinger, Weber, Weiss 2008), at the
// rate of the slower direction. Trouble is not taken into account: a tenth of the
// uplinks at a tenth of the rate alone are worth 1.10 of it.
func (c crowdCase) optimum() time.Duration {
	return time.Duration(c.chunks+bits.Len(uint(c.nodes-1))-1) * c.chunkTime()
}

func (c crowdCase) chunkTime() time.Duration {
	return time.Duration(float64(time.Second) / (gbit * min(c.up, c.down)))
}

// outcome is what came of a simulation.
type outcome struct {
	makespan float64         // of those who stay and are there from the start, in optima
	late     float64         // of the late joiner, in times that the image takes on its link
	source   float64         // images that left the source
	dups     float64         // chunks that came twice, of those needed
	done     []time.Duration // of each node
}

func (o outcome) String() string {
	s := fmt.Sprintf("%8.3f  %6.2f  %9.2f %%", o.makespan, o.source, 100*o.dups)
	if o.late > 0 {
		s += fmt.Sprintf("  %6.2f", o.late)
	}
	return s
}

// percentOf spreads per cent of the nodes evenly, the source aside; shift keeps
// two kinds of trouble apart.
func (c crowdCase) percentOf(i, percent, shift int) bool {
	if percent == 0 || i == 0 {
		return false
	}
	every := 100 / percent
	return (i+shift)%every == 0
}

// run must be called in a bubble.
func (c crowdCase) run(t testing.TB, seed uint64) outcome {
	s := newSimNet(seed, maxNeighbours)
	defer s.close()
	nodes := c.nodes
	if c.late {
		nodes++
	}
	for i := range nodes {
		trip := c.rtt / 2
		if c.mixed {
			// The trip between two nodes is the mean of theirs: here 0.1 to 25 ms.
			trip = time.Duration(float64(100*time.Microsecond) * math.Pow(250, s.rng.Float64()))
		}
		n := s.add(fmt.Sprintf("n%04d", i), newMemChunks(c.chunks, i == 0), gbit, trip)
		n.up.rate *= c.up
		n.down.rate *= c.down
		switch {
		case c.late && i == c.nodes:
			n.joins = c.optimum() / 2
		case c.percentOf(i, c.slow, 7):
			n.up.rate /= 10
			if c.slowDown {
				n.down.rate /= 10
			}
		case c.percentOf(i, c.leave, 10):
			n.leaveAfter(c.optimum() / 2)
		}
	}
	s.run(t, t.Context())

	var o outcome
	var last time.Duration
	needed := 0
	for i, name := range s.names {
		n := s.nodes[name]
		o.done = append(o.done, n.done)
		o.dups += float64(n.dups.Load())
		switch {
		case i == 0:
			o.source = float64(n.sent.Load()) / float64(c.chunks)
			continue
		case n.alive().Err() != nil:
			needed += n.chunks.Have().Count()
			continue
		case n.joins > 0:
			o.late = float64(n.done) / (float64(c.chunks) * float64(c.chunkTime()))
		case c.slowDown && n.down.rate < gbit*pieceBytes*c.down:
		default:
			last = max(last, n.done)
		}
		needed += c.chunks
		if missing := c.chunks - n.chunks.Have().Count(); missing > 0 {
			t.Errorf("%s lacks %d chunks", name, missing)
		}
	}
	o.makespan = float64(last) / float64(c.optimum())
	o.dups /= float64(needed)
	return o
}

// The bounds are a few per cent above what was measured; what is aimed at is 1.15
// at N = 64, 1.25 at N = 1,000, 1.3 with a tenth of slow peers, and 1.3 images from
// the source. The optimum knows no latency and no trouble: with few chunks, or far
// peers, a chunk's way through the swarm shows.
var smallSimulations = []crowdCase{
	{nodes: 2, chunks: 1, up: 1, down: 1, rtt: ms, atMost: 1.4, source: 1},
	{nodes: 2, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.01, source: 1},
	{nodes: 2, chunks: 256, up: 1, down: 1, rtt: 50 * ms, atMost: 1.25, source: 1},
	{nodes: 4, chunks: 256, up: 1, down: 1, rtt: 50 * ms, atMost: 1.35, source: 1.1},
	{nodes: 4, chunks: 5, up: 1, down: 1, rtt: ms, atMost: 1.5, source: 1.6},
	{nodes: 8, chunks: 64, up: 1, down: 1, rtt: ms, atMost: 1.12, source: 1.15},
	{nodes: 16, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.08, source: 1.1},
	{nodes: 16, chunks: 64, up: 0.5, down: 1, rtt: ms, atMost: 1.15, source: 1.25},
	{nodes: 16, chunks: 64, up: 1, down: 0.5, rtt: ms, atMost: 1.1, source: 1.3},
	{nodes: 16, chunks: 64, up: 1, down: 1, mixed: true, atMost: 1.3, source: 1.3},
	{nodes: 40, chunks: 128, up: 1, down: 1, rtt: ms, slow: 10, leave: 5, late: true, atMost: 1.3, source: 1.3},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.15, source: 1.1},
}

var fullSimulations = []crowdCase{
	{nodes: 2, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.01, source: 1},
	{nodes: 4, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.05, source: 1.1},
	{nodes: 8, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.06, source: 1.1},
	{nodes: 16, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.08, source: 1.1},
	{nodes: 64, chunks: 64, up: 1, down: 1, rtt: ms, atMost: 1.25, source: 1.3},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 1024, up: 1, down: 1, rtt: ms, atMost: 1.05, source: 1.1},
	{nodes: 250, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.12, source: 1.2},
	{nodes: 1000, chunks: 256, up: 1, down: 1, rtt: ms, atMost: 1.15, source: 1.2},

	{nodes: 64, chunks: 256, up: 0.1, down: 0.1, rtt: ms, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 256, up: 0.5, down: 1, rtt: ms, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 256, up: 0.1, down: 1, rtt: ms, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 256, up: 1, down: 0.5, rtt: ms, atMost: 1.1, source: 1.15},

	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: 200 * time.Microsecond, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: 10 * ms, atMost: 1.15, source: 1.15},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: 50 * ms, atMost: 1.35, source: 1.2},
	{nodes: 2, chunks: 256, up: 1, down: 1, rtt: 10 * ms, atMost: 1.1, source: 1},
	{nodes: 2, chunks: 256, up: 1, down: 1, rtt: 50 * ms, atMost: 1.25, source: 1},
	{nodes: 4, chunks: 256, up: 1, down: 1, rtt: 50 * ms, atMost: 1.35, source: 1.1},
	{nodes: 64, chunks: 256, up: 1, down: 1, mixed: true, atMost: 1.25, source: 1.15},
	{nodes: 64, chunks: 256, up: 0.1, down: 0.1, rtt: 50 * ms, atMost: 1.2, source: 1.15},

	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, slow: 10, atMost: 1.3, source: 1.3},
	{nodes: 250, chunks: 256, up: 1, down: 1, rtt: ms, slow: 10, atMost: 1.3, source: 1.3},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, slow: 10, slowDown: true, atMost: 1.25, source: 1.35},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, leave: 5, atMost: 1.12, source: 1.15},
	{nodes: 64, chunks: 256, up: 1, down: 1, rtt: ms, late: true, atMost: 1.1, source: 1.15},
	{nodes: 64, chunks: 256, up: 1, down: 1, mixed: true, slow: 10, leave: 5, late: true, atMost: 1.4, source: 1.3},
	{nodes: 1000, chunks: 256, up: 1, down: 1, rtt: ms, slow: 10, leave: 5, late: true, atMost: 1.35, source: 1.3},
}

// TestSimulation runs the scheduler over simulated links in virtual time.
func TestSimulation(t *testing.T) {
	cases, full := smallSimulations, *simSize == "full"
	if full {
		cases = fullSimulations
		fmt.Printf("%5s  %6s  %9s  %9s  %-34s  %8s  %6s  %11s  %6s\n",
			"nodes", "chunks", "up/down", "rtt", "trouble", "makespan", "source", "duplicates", "late")
	}
	for _, c := range cases {
		line := fmt.Sprintf("%5d  %6d  %9s  %9s  %-34s", c.nodes, c.chunks, c.rates(), c.latency(), c.trouble())
		name := fmt.Sprintf("nodes=%d,chunks=%d,up=%g,down=%g,rtt=%s,%s", c.nodes, c.chunks, c.up, c.down, c.latency(), c.trouble())
		t.Run(name, func(t *testing.T) {
			if c.nodes > 16 && raceDetector {
				t.Skip("the race detector takes five times the CPU; make cluster runs this without")
			}
			synctest.Test(t, func(t *testing.T) {
				o := c.run(t, *simRand)
				if full {
					fmt.Printf("%s  %s\n", line, o)
				} else {
					t.Logf("%s  %s", line, o)
				}
				if o.makespan > c.atMost || o.source > c.source {
					t.Errorf("want at most %.2f × the optimum and %.2f × the image from the source", c.atMost, c.source)
				}
			})
		})
	}
}

// The same seed gives the same run, to the nanosecond and node; another gives
// another.
func TestSimulationRepeats(t *testing.T) {
	c := crowdCase{nodes: 24, chunks: 48, up: 1, down: 0.7, mixed: true, slow: 10, leave: 5, late: true}
	var all []outcome
	for _, seed := range []uint64{1, 1, 1, 2} {
		synctest.Test(t, func(t *testing.T) { all = append(all, c.run(t, seed)) })
	}
	for _, o := range all[1:3] {
		if !slices.Equal(o.done, all[0].done) || o.source != all[0].source || o.dups != all[0].dups {
			t.Fatalf("the same seed gives %v, then %v", all[0], o)
		}
	}
	if slices.Equal(all[3].done, all[0].done) {
		t.Error("another seed gives the same")
	}
}

// Two images that are announced at once share the links evenly, and cost about
// what one image of both sizes would: from two nodes or from one, and where one
// is wanted by all and the other by two nodes.
func TestTwoImagesShareTheLinks(t *testing.T) {
	const nodes, chunks = 16, 128
	cases := []struct {
		name    string
		source  int           // of the second image; the first one's is n0
		wanting int           // nodes that want the second image
		lag     time.Duration // the second one is wanted later
		ratio   float64       // of the two makespans, at most
	}{
		{"two sources", 1, nodes - 1, 0, 1.1},
		{"one source", 0, nodes - 1, 0, 1.1},
		{"one source, one image wanted by two", 0, 2, 0, 1.25},
		{"one later", 1, nodes - 1, 300 * ms, 1.1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newSimNet(*simRand, maxNeighbours)
				defer a.close()
				b := a.another(digest.FromString("another image"))
				defer b.closeNodes()
				for i := range nodes {
					a.add(fmt.Sprintf("n%d", i), newMemChunks(chunks, i == 0), gbit, ms/2)
				}
				for i := range c.wanting + 1 {
					n := b.share(a.nodes[a.names[(c.source+i)%nodes]], newMemChunks(chunks, i == 0))
					if i > 0 {
						n.joins = c.lag
					}
				}
				done := make(chan struct{})
				go func() { defer close(done); b.run(t, t.Context()) }()
				a.run(t, t.Context())
				<-done

				last := func(s *simNet) (d time.Duration) {
					for _, n := range s.nodes {
						d = max(d, n.done)
					}
					return d
				}
				first, second := last(a), last(b)
				ratio := float64(max(first, second)) / float64(min(first, second))
				both := crowdCase{nodes: nodes, chunks: 2 * chunks, up: 1, down: 1}
				whole := float64(max(first, c.lag+second)) / float64(both.optimum())
				t.Logf("%v and %v: %.2f apart, %.3f × the optimum for both", first, second, ratio, whole)
				if ratio > c.ratio || whole > 1.15 {
					t.Errorf("want at most %.2f apart and 1.15 × the optimum for both", c.ratio)
				}
			})
		})
	}
}
