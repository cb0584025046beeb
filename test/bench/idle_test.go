package bench

import (
	"os"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestIdle measures what a host's seeder takes while nothing happens, with 100
// images and 16 members.
func TestIdle(t *testing.T) {
	if os.Getenv("BENCH_IDLE") == "" {
		t.Skip("a measurement that takes minutes; `make bench-idle` runs it")
	}
	const calm, watched = time.Minute, time.Minute
	load := benchLoad(t, "tiny", 0)
	n := harness.NewCluster(t, harness.Newest, 16, "")
	archive := load.archive(t, n.Dir)
	for _, h := range n.Hosts { // nothing to fetch: what counts is what is there
		h.Ctr("images", "import", archive)
	}
	for _, ref := range load.refs {
		n.Hosts[0].Run("announce", "--detach", ref)
	}
	n.Hosts[0].Run("wait", "--timeout", "10m")
	time.Sleep(calm) // what follows the last announcement is no idleness
	before := countersOf(n)
	time.Sleep(watched)
	after := countersOf(n)
	var cpu, rss []float64
	for i, h := range n.Hosts {
		cpu = append(cpu, (after[i].seederCPU-before[i].seederCPU)/watched.Seconds())
		rss = append(rss, harness.ResidentBytes(t, h.Seeder.PID))
	}
	t.Logf("16 hosts with 100 images, idle: %s %% of a core, %s MiB resident",
		spread(scaled(cpu, 100), "%.2f"), spread(scaled(rss, 1.0/(1<<20)), "%.1f"))
	if median(rss) > 40<<20 {
		t.Errorf("want at most 40 MiB")
	}
}

func scaled(v []float64, by float64) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = v[i] * by
	}
	return out
}
