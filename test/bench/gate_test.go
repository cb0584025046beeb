package bench

import (
	"testing"

	"seeder/test/harness"
)

const (
	// gateBytes is about how large the image of TestCPUGate is, gateTurns how often it moves
	// in each way.
	gateBytes = 60 << 20
	gateTurns = 2
	// gateRatio is what seeder may use of the CPU that a registry uses, containerd's included,
	// for plain layers to three hosts without a limit of the links. See docs/benchmarks.md for
	// what it is; the rest is for machines that differ.
	gateRatio = 2.2
)

// TestCPUGate: what seeder and containerd use to bring plain layers from one host to two
// others stays below a multiple of what a registry and containerd use. Both are measured in
// turns in the same run, and only these processes, so that a busy machine changes both.
func TestCPUGate(t *testing.T) {
	harness.NeedRoot(t)
	used := map[string]float64{}
	for range gateTurns {
		for _, way := range []string{"seeder", "registry"} {
			t.Run(way, func(t *testing.T) {
				s := cell{image: "raw", rate: "unshaped", hosts: 3, bytes: gateBytes}.measure(t, way, newBatch(1))
				t.Logf("%s: ready on all after %.1f s with %.1f CPU-s of the daemons, %.1f of them seeder's", way, s.Ready, s.Daemons, s.Seeder)
				used[way] += s.Daemons
			})
		}
	}
	if t.Failed() {
		return
	}
	ratio := used["seeder"] / used["registry"]
	t.Logf("CPU of seeder divided by that of the registry: %.2f", ratio)
	if ratio > gateRatio {
		t.Errorf("seeder used %.2f times the CPU of a registry, at most %.2f are meant: make bench-profile says where", ratio, gateRatio)
	}
}
