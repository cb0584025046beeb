package test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLimits: upload_limit and download_limit hold to within 5 % over 5 s, shared
// by all transfers, and a reload changes them while they run.
func TestLimits(t *testing.T) {
	n := cluster(t, newest, 3, "")
	a, b := n.hosts[0], n.hosts[1]
	configure := func(h *host, yaml string) {
		h.write("/etc/seeder/seeder.yaml", yaml+"\n", 0o600)
		t.Logf("%s: %s", h.name, strings.TrimSpace(h.run("reload")))
	}
	measure := func(h *host, metric string, want float64) {
		t.Helper()
		time.Sleep(time.Second) // what the limit before it let through; the measurement is of a rate
		before, start := h.metric(metric), time.Now()
		time.Sleep(5 * time.Second)
		got := (h.metric(metric) - before) / time.Since(start).Seconds()
		t.Logf("%s on %s: %.2f MB/s, limit %.2f", metric, h.name, got/1e6, want/1e6)
		if got < 0.95*want || got > 1.05*want {
			t.Errorf("%s on %s: %.0f bytes/s, want %.0f within 5 %%", metric, h.name, got, want)
		}
	}
	const mb = 1_000_000
	configure(a, "transfer: {upload_limit: 4MB}")
	a.importImage(imageSpec{ref: short, says: "hello", random: 160 << 20, seed: 1})
	a.run("announce", "--detach", short)
	eventually(t, 20*time.Second, "both fetch", func() error {
		for _, h := range n.hosts[1:] {
			if got := h.metric("seeder_wire_received_bytes_total"); got < mb {
				return fmt.Errorf("%s has %.0f bytes", h.name, got)
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
	if err := b.try(nil, "members"); err != nil { // gossip lives through it
		t.Error(err)
	}
	b.awaitMembers(3)
	configure(a, "transfer: {upload_limit: 0}")
	configure(b, "transfer: {download_limit: 0}")
	b.ready("hello")
	t.Logf("without limits ready after %v", time.Since(start).Round(time.Millisecond))
}
