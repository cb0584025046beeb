package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// buildsOf are three builds of one image: in each a hundredth of the files of a layer of some
// mb MB are others than in the build before.
func buildsOf(t *testing.T, gzip bool, mb int) (builds []*harness.Image) {
	t.Helper()
	const size = 80_000
	files := map[string][]byte{}
	for i := range mb * 1_000_000 / size {
		files[fmt.Sprintf("usr/lib/app/%05d.txt", i)] = harness.Words(uint64(i), size)
	}
	for build := range 3 {
		for i := build; build > 0 && i < len(files); i += 100 {
			name := fmt.Sprintf("usr/lib/app/%05d.txt", i)
			files[name] = append(fmt.Appendf(nil, "a line of build %d\n", build), files[name]...)
		}
		builds = append(builds, harness.PackImage(t, harness.ShortName, gzip, harness.TarOf(t, files)))
	}
	return builds
}

// deploy is how an image came to all hosts.
type deploy struct {
	took time.Duration
	sent float64 // bytes, by the announcing host
	// peaks are the resident MiB of the announcing daemon and of the largest other one, while
	// the image was on its way.
	peaks [2]float64
}

// deployed brings img to all hosts.
func deployed(t *testing.T, n *harness.Network, img *harness.Image, args ...string) (d deploy) {
	t.Helper()
	a := n.Hosts[0]
	a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
	for _, h := range n.Hosts {
		harness.ResetPeakRSS(t, h.Seeder.PID)
	}
	sent := a.Metric("seeder_wire_sent_bytes_total")
	began := time.Now()
	a.Run(append([]string{"announce", "--timeout", "10m"}, append(args, harness.ShortName)...)...)
	d.took, d.sent = time.Since(began), a.Metric("seeder_wire_sent_bytes_total")-sent
	for i, h := range n.Hosts {
		side := min(i, 1)
		d.peaks[side] = max(d.peaks[side], harness.PeakRSS(t, h.Seeder.PID)/(1<<20))
	}
	return d
}

// TestDeploy measures the deploy after the first one, of a layer of BENCH_DEPLOY_MB MB of which one
// file of a hundred was edited: the second build whole, the third as a delta.
func TestDeploy(t *testing.T) {
	if os.Getenv("BENCH_DEPLOY") == "" {
		t.Skip("a measurement that takes minutes; `make bench-deploy` runs it")
	}
	harness.WantCache(t)
	mb, err := strconv.Atoi(harness.EnvList("BENCH_DEPLOY_MB", "300")[0])
	if err != nil {
		t.Fatalf("BENCH_DEPLOY_MB: %v", err)
	}
	var table strings.Builder
	table.WriteString("| layer | hosts | links | whole | delta | delta ÷ whole | announcer sent | of the layer | peak RSS of the announcer, whole and delta | of the others |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, gzip := range []bool{true, false} {
		builds := buildsOf(t, gzip, mb)
		layer := float64(len(builds[2].Layers[0]))
		kind := map[bool]string{true: "gzip", false: "plain"}[gzip]
		for _, cell := range []struct {
			hosts int
			rate  string
		}{{3, "25mbit"}, {8, "100mbit"}, {8, "1000mbit"}} {
			t.Run(fmt.Sprintf("%s/%d/%s", kind, cell.hosts, cell.rate), func(t *testing.T) {
				n := harness.NewCluster(t, harness.Newest, cell.hosts, cell.rate)
				deployed(t, n, builds[0])
				whole := deployed(t, n, builds[1], "--no-delta")
				delta := deployed(t, n, builds[2])
				fmt.Fprintf(&table, "| %s, %.0f MB | %d | %s | %.1f s, %.1f MB sent | %.1f s | %.2f | %.2f MB | %.2f %% | %.0f, %.0f MiB | %.0f, %.0f MiB |\n", kind, layer/1e6,
					cell.hosts, strings.Replace(cell.rate, "mbit", " Mbit/s", 1), whole.took.Seconds(), whole.sent/1e6,
					delta.took.Seconds(), delta.took.Seconds()/whole.took.Seconds(), delta.sent/1e6, 100*delta.sent/layer,
					whole.peaks[0], delta.peaks[0], whole.peaks[1], delta.peaks[1])
			})
		}
	}
	fmt.Println(table.String())
}
