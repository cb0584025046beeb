package swarm

import (
	"flag"
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// go test -run TestSimulation -v ./p2p/swarm -sim.nodes 1000 -sim.chunks 256
var (
	simNodes  = flag.Int("sim.nodes", 0, "nodes of an additional simulation")
	simChunks = flag.Int("sim.chunks", 256, "chunks of an additional simulation")
	simRand   = flag.Uint64("sim.seed", 1, "seed of the simulations")
)

type outcome struct {
	ratio  float64 // makespan / optimum
	source float64 // copies that left the source
	dups   int64
}

// flashCrowd lets nodes-1 nodes fetch from one source, all at once, 1 MiB chunks
// at 1 Gbit/s.
func flashCrowd(t testing.TB, nodes, chunks int, latency time.Duration) outcome {
	const piece = 8 * time.Millisecond
	s := newSimNet(*simRand, maxNeighbours)
	defer s.close()
	for i := range nodes {
		s.add(fmt.Sprintf("n%04d", i), newMemChunks(chunks, i == 0), 1/piece.Seconds(), latency)
	}
	s.run(t, t.Context())
	var last time.Duration
	var dups int64
	for _, n := range s.nodes {
		last = max(last, n.done)
		dups += n.dups.Load()
	}
	var all []time.Duration
	for _, n := range s.nodes {
		all = append(all, n.done)
	}
	slices.Sort(all)
	t.Logf("done at: 1st %v, median %v, 90%% %v, 99%% %v, last %v", all[1], all[nodes/2], all[nodes*9/10], all[nodes*99/100], all[nodes-1])
	optimum := time.Duration(chunks+bits.Len(uint(nodes-1))-1) * piece
	return outcome{
		ratio:  float64(last) / float64(optimum),
		source: float64(s.nodes["n0000"].sent.Load()) / float64(chunks),
		dups:   dups,
	}
}

func TestSimulation(t *testing.T) {
	cases := []struct {
		nodes, chunks int
		ratio, source float64 // at most
	}{
		{2, 1, 9, 9},
		{2, 256, 9, 9},
		{4, 5, 9, 9},
		{4, 256, 9, 9},
		{8, 64, 9, 9},
		{8, 256, 9, 9},
		{16, 256, 9, 9},
		{64, 256, 9, 9},
	}
	if *simNodes > 0 {
		cases = cases[:0]
		cases = append(cases, struct {
			nodes, chunks int
			ratio, source float64
		}{*simNodes, *simChunks, 1.10, 1.3})
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d nodes %d chunks", c.nodes, c.chunks), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := flashCrowd(t, c.nodes, c.chunks, 500*time.Microsecond)
				t.Logf("N=%d K=%d: %.3f × the optimum, source sent %.2f × the image, %d duplicates of %d",
					c.nodes, c.chunks, o.ratio, o.source, o.dups, (c.nodes-1)*c.chunks)
				if o.ratio > c.ratio || o.source > c.source {
					t.Errorf("want at most %.2f × the optimum and %.2f × the image from the source", c.ratio, c.source)
				}
			})
		})
	}
}
