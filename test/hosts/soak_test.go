package hosts

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// usage is what a host's seeder takes at one moment.
type usage struct {
	goroutines, files, leases, previous, pins, staged float64
	residentMiB, heapMiB, idleMiB                     float64 // idle: free heap that the kernel does not have back
	catalogKiB, cacheMiB                              float64
}

func (u usage) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f files, %.1f MiB resident (heap %.1f MiB in use, %.1f MiB idle), %.0f leases, %.0f earlier versions, %.0f pins, %.0f bytes staged, catalog %.0f KiB, cache %.1f MiB",
		u.goroutines, u.files, u.residentMiB, u.heapMiB, u.idleMiB, u.leases, u.previous, u.pins, u.staged, u.catalogKiB, u.cacheMiB)
}

func usageOf(h *harness.Host) usage {
	h.T.Helper()
	leased, previous := leasedForWork(h)
	files := 0
	for _, k := range harness.OpenFiles(h.Seeder) {
		files += k
	}
	return usage{
		goroutines:  h.Metric("go_goroutines"),
		files:       float64(files),
		residentMiB: harness.ResidentBytes(h.T, h.Seeder.PID) / (1 << 20),
		heapMiB:     h.Metric("go_memstats_heap_inuse_bytes") / (1 << 20),
		idleMiB:     (h.Metric("go_memstats_heap_idle_bytes") - h.Metric("go_memstats_heap_released_bytes")) / (1 << 20),
		leases:      float64(len(leased)),
		previous:    float64(previous),
		pins:        float64(len(pinned(h))),
		staged:      treeBytes(h.Path(dataDir + "/stage")),
		catalogKiB:  treeBytes(h.Path(dataDir+"/catalog.db")) / (1 << 10),
		cacheMiB:    treeBytes(h.Path(dataDir+"/cache")) / (1 << 20),
	}
}

func treeBytes(root string) (sum float64) {
	filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += float64(info.Size())
			}
		}
		return nil // what goes away meanwhile is not counted
	})
	return sum
}

// settle is longer than anything that a quiet seeder keeps for a while: unused swarms and
// connections, leases and staged chunks of superseded builds, and memory. The runtime collects
// an idle heap every two minutes, and what was pooled is free after the second collection.
const settle = 5 * time.Minute

// TestSoak: continuous announcements under churn take nothing for good: what a
// node takes after it is what it took before.
func TestSoak(t *testing.T) {
	minutes, err := strconv.ParseFloat(os.Getenv("SOAK_MINUTES"), 64)
	if err != nil {
		t.Skip("it takes an hour; `make soak` runs it, SOAK_MINUTES=10 makes it shorter")
	}
	rng := rand.New(rand.NewPCG(1, 0))
	n := harness.NewCluster(t, harness.Newest, 4, "200mbit")
	refs := make([]string, 6)
	build := 0
	announce := func(by *harness.Host, ref string) {
		build++
		by.ImportImage(harness.ImageSpec{Ref: ref, Says: fmt.Sprintf("build %d", build), Payload: 1 << 20, Random: 2 << 20, Seed: uint64(build)})
		by.Run("announce", "--detach", ref)
	}
	for i := range refs {
		refs[i] = fmt.Sprintf("app%d:latest", i)
		announce(n.Hosts[0], refs[i])
	}
	quiet := func() (out []usage) {
		n.Hosts[0].Run("wait", "--timeout", "2m")
		time.Sleep(settle) // nothing happens: that is what is measured
		for _, h := range n.Hosts {
			out = append(out, usageOf(h))
		}
		return out
	}
	before := quiet()
	restarts, withdrawals, collected := 0, 0, 0
	for end := time.Now().Add(time.Duration(minutes * float64(time.Minute))); time.Now().Before(end); {
		by := n.Hosts[rng.IntN(len(n.Hosts))]
		ref := refs[rng.IntN(len(refs))]
		announce(by, ref)
		switch rng.IntN(10) {
		case 0: // the first two run all the time: theirs is the figure
			h := n.Hosts[2+rng.IntN(2)]
			h.Seeder.Stop(t, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[rng.IntN(2)])
			h.StartSeeder()
			restarts++
		case 1:
			by.Run("withdraw", ref)
			announce(by, ref)
			withdrawals++
		}
		if build%50 == 0 { // else no disk is large enough
			for _, h := range n.Hosts {
				collected += kubeletCollects(h)
			}
		}
	}
	after := quiet()
	t.Logf("%.0f minutes: %d builds announced, %d withdrawn and announced again, %d restarts, %d images collected as the kubelet does", minutes, build, withdrawals, restarts, collected)
	for i, h := range n.Hosts {
		b, a := before[i], after[i]
		t.Logf("%s before: %v", h.Name, b)
		t.Logf("%s after:  %v", h.Name, a)
		if a.leases > 0 || a.staged > 0 || a.previous > float64(len(refs)) || a.pins > 2*float64(len(refs)) { // a name and its digest
			t.Errorf("%s: %.0f leases, %.0f earlier versions, %.0f pins and %.0f staged bytes are left", h.Name, a.leases, a.previous, a.pins, a.staged)
		}
		if a.goroutines > b.goroutines+10 || a.files > b.files+5 || a.catalogKiB > 2*b.catalogKiB {
			t.Errorf("%s has grown", h.Name)
		}
		if a.residentMiB > b.residentMiB*1.5+8 { // the runtime keeps some pages
			t.Errorf("%s: %.1f MiB resident, %.1f before", h.Name, a.residentMiB, b.residentMiB)
		}
	}
}
