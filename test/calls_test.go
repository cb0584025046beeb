package test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestCallsOfContainerd: a layer costs the host that gets it five calls of containerd's
// API: one writes, labels and commits its blob, three unpack it, and the look at the end
// asks for the blob. An image of many small layers takes hardly more than its calls.
func TestCallsOfContainerd(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	first, other := n.hosts[0], n.hosts[1]
	calls := func(layers int) float64 {
		t.Helper()
		var tars [][]byte
		for k := range layers {
			tars = append(tars, tarOf(t, map[string][]byte{fmt.Sprintf("file-%d", k): words(uint64(1000*layers+k), 1000)}))
		}
		img := packImage(t, fmt.Sprintf("layers-%d:latest", layers), false, tars...)
		first.ctr("images", "import", dockerArchive(t, n.dir, img))
		before := other.containerdCalls("content", "snapshots", "diff")
		first.run("announce", img.ref)
		return other.containerdCalls("content", "snapshots", "diff") - before
	}
	few, many := calls(2), calls(42)
	t.Logf("%v calls for 2 layers, %v for 42", few, many)
	if perLayer := (many - few) / 40; perLayer < 4 || perLayer > 5.2 {
		t.Errorf("%.1f calls for each layer, want 5", perLayer)
	}
}

// containerdCalls is how many calls of these services the host's containerd has
// answered.
func (h *host) containerdCalls(services ...string) (calls float64) {
	h.t.Helper()
	out := run(h.t, h.in(h.t.Context(), "busybox", "wget", "-q", "-O", "-", "http://"+containerdMetrics+"/v1/metrics"))
	for line := range strings.Lines(out) {
		labels, value, ok := strings.Cut(line, "} ")
		if !ok || !strings.HasPrefix(labels, "grpc_server_handled_total{") {
			continue
		}
		for _, s := range services {
			if strings.Contains(labels, `grpc_service="containerd.services.`+s+`.v1.`) {
				v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					h.t.Fatalf("metric %q: %v", line, err)
				}
				calls += v
			}
		}
	}
	return calls
}
