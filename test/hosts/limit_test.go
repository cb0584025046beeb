package hosts

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestLimits: upload_limit and download_limit hold to within 5 % over 5 s, shared
// by all transfers, and a reload changes them while they run.
func TestLimits(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b := n.Hosts[0], n.Hosts[1]
	configure := func(h *harness.Host, yaml string) {
		h.Write("/etc/seeder/seeder.yaml", yaml+"\n", 0o600)
		t.Logf("%s: %s", h.Name, strings.TrimSpace(h.Run("reload")))
	}
	measure := func(h *harness.Host, metric string, want float64) {
		t.Helper()
		time.Sleep(time.Second) // what the limit before it let through; the measurement is of a rate
		before, start := h.Metric(metric), time.Now()
		time.Sleep(5 * time.Second)
		got := (h.Metric(metric) - before) / time.Since(start).Seconds()
		t.Logf("%s on %s: %.2f MB/s, limit %.2f", metric, h.Name, got/1e6, want/1e6)
		if got < 0.95*want || got > 1.05*want {
			t.Errorf("%s on %s: %.0f bytes/s, want %.0f within 5 %%", metric, h.Name, got, want)
		}
	}
	const mb = 1_000_000
	configure(a, "transfer: {upload_limit: 4MB}")
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 160 << 20, Seed: 1})
	a.Run("announce", "--detach", harness.ShortName)
	harness.Eventually(t, 20*time.Second, "both fetch", func() error {
		for _, h := range n.Hosts[1:] {
			if got := h.Metric("seeder_wire_received_bytes_total"); got < mb {
				return fmt.Errorf("%s has %.0f bytes", h.Name, got)
			}
		}
		return nil
	})
	measure(a, "seeder_wire_sent_bytes_total", 4*mb)
	configure(a, "transfer: {upload_limit: 8MB}")
	measure(a, "seeder_wire_sent_bytes_total", 8*mb)
	configure(b, "transfer: {download_limit: 3MB}")
	measure(b, "seeder_wire_received_bytes_total", 3*mb)
	start := time.Now()
	if err := b.Try(nil, "members"); err != nil { // gossip lives through it
		t.Error(err)
	}
	b.AwaitMembers(3)
	configure(a, "transfer: {upload_limit: 0}")
	configure(b, "transfer: {download_limit: 0}")
	b.Ready("hello")
	t.Logf("without limits ready after %v", time.Since(start).Round(time.Millisecond))
}
