package hosts

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// medianAnswer is how long h takes to say what all hosts have of each image.
func medianAnswer(h *harness.Host) time.Duration {
	h.T.Helper()
	var all []time.Duration
	for range 9 {
		began := time.Now()
		if err := h.Try(&report.Images{}, "images"); err != nil {
			h.T.Fatal(err)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	h.T.Logf("%s answers after %s", h.Name, all)
	return all[len(all)/2]
}

// TestLowLimit: at the lowest limit that the configuration takes, 64 KiB/s, chunks wait
// for their turn and nothing else does. While an image is on its way, members answer
// the matrix, announcements reach them, and doctor accuses neither a firewall nor the
// MTU of the path.
func TestLowLimit(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	idle := medianAnswer(b) // of this machine now: a command takes longer on a busy one
	a.Write("/etc/seeder/seeder.yaml", "transfer: {upload_limit: 64KiB}\n", 0o600)
	a.Run("reload")
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 64 << 20, Seed: 1})
	a.Run("announce", "--detach", harness.ShortName)
	harness.Eventually(t, 60*time.Second, "chunks are on their way", func() error {
		if got := b.Metric("seeder_wire_received_bytes_total"); got < 256<<10 {
			return fmt.Errorf("%.0f bytes have arrived", got)
		}
		return nil
	})
	if took := medianAnswer(b); took > idle+250*time.Millisecond { // behind chunks it is half a second
		t.Errorf("the matrix of both hosts takes %s in the median under the limit of one, %s without it", took, idle)
	}
	for _, h := range n.Hosts {
		var m report.Images
		if err := h.Try(&m, "images"); err != nil {
			t.Fatal(err)
		}
		for _, image := range m.Images {
			for _, node := range image.Nodes {
				if node.State == report.Unreachable {
					t.Errorf("images on %s: %s is %s: %s", h.Name, node.Name, node.State, node.Reason)
				}
			}
		}
		if wrong := doctor(h).wrong(); slices.ContainsFunc(wrong, func(w string) bool {
			return !strings.HasPrefix(w, "warning pods") && !strings.HasPrefix(w, "problem pods")
		}) {
			t.Errorf("doctor on %s under the limit: %q", h.Name, wrong)
		}
	}
	a.ImportImage(harness.ImageSpec{Ref: "control:v1", Says: "small"})
	a.Run("announce", "--detach", "control:v1")
	harness.Eventually(t, 30*time.Second, "an announcement arrives under the limit", func() error {
		var m report.Images
		if err := b.Try(&m, "images"); err != nil {
			return err
		}
		if !slices.ContainsFunc(m.Images, func(i report.ImageState) bool { return i.Reference == "docker.io/library/control:v1" }) {
			return fmt.Errorf("%d images are known", len(m.Images))
		}
		return nil
	})
}
