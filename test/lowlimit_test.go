package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
)

// TestLowLimit: at the lowest limit that the configuration takes, 64 KiB/s, chunks wait
// for their turn and nothing else does. While an image is on its way, members answer
// the matrix, announcements reach them, and doctor accuses neither a firewall nor the
// MTU of the path.
func TestLowLimit(t *testing.T) {
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	a.write("/etc/seeder/seeder.yaml", "transfer: {upload_limit: 64KiB}\n", 0o600)
	a.run("reload")
	a.importImage(imageSpec{ref: short, says: "hello", random: 64 << 20, seed: 1})
	a.run("announce", "--detach", short)
	eventually(t, 60*time.Second, "chunks are on their way", func() error {
		if got := b.metric("seeder_wire_received_bytes_total"); got < 256<<10 {
			return fmt.Errorf("%.0f bytes have arrived", got)
		}
		return nil
	})
	for _, h := range n.hosts {
		var m report.Images
		if err := h.try(&m, "images"); err != nil {
			t.Fatal(err)
		}
		for _, image := range m.Images {
			for _, node := range image.Nodes {
				if node.State == report.Unreachable {
					t.Errorf("images on %s: %s is %s: %s", h.name, node.Name, node.State, node.Reason)
				}
			}
		}
		if wrong := h.doctor().wrong(); slices.ContainsFunc(wrong, func(w string) bool {
			return !strings.HasPrefix(w, "warning pods") && !strings.HasPrefix(w, "problem pods")
		}) {
			t.Errorf("doctor on %s under the limit: %q", h.name, wrong)
		}
	}
	a.importImage(imageSpec{ref: "control:v1", says: "small"})
	a.run("announce", "--detach", "control:v1")
	eventually(t, 30*time.Second, "an announcement arrives under the limit", func() error {
		var m report.Images
		if err := b.try(&m, "images"); err != nil {
			return err
		}
		if !slices.ContainsFunc(m.Images, func(i report.ImageState) bool { return i.Reference == "docker.io/library/control:v1" }) {
			return fmt.Errorf("%d images are known", len(m.Images))
		}
		return nil
	})
}
