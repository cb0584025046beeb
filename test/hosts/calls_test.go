package hosts

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"seeder/test/harness"
)

// TestCallsOfContainerd: a layer costs the host that gets it five calls of containerd's
// API: one writes, labels and commits its blob, three unpack it, and the look at the end
// asks for the blob. It costs the host that announces it three questions: to list the image,
// to serve it, and in the look at the end. An image of many small layers takes hardly more
// than its calls.
func TestCallsOfContainerd(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	first, other := n.Hosts[0], n.Hosts[1]
	calls := func(layers int) (got, asked float64) {
		t.Helper()
		img := imageOf(t, layers)
		first.Ctr("images", "import", harness.DockerArchive(t, n.Dir, img))
		before, askedBefore := containerdCalls(other, "content", "snapshots", "diff"), containerdCalls(first, "content/Info")
		first.Run("announce", img.Ref)
		return containerdCalls(other, "content", "snapshots", "diff") - before, containerdCalls(first, "content/Info") - askedBefore
	}
	few, askedFew := calls(2)
	many, askedMany := calls(42)
	t.Logf("%v calls for 2 layers, %v for 42; %v and %v questions of the announcing host", few, many, askedFew, askedMany)
	if perLayer := (many - few) / 40; perLayer < 4 || perLayer > 5.2 {
		t.Errorf("%.1f calls for each layer, want 5", perLayer)
	}
	if perLayer := (askedMany - askedFew) / 40; perLayer > 3.2 {
		t.Errorf("%.1f questions of the announcing host for each layer, want 3", perLayer)
	}
}

// TestArchiveIsSettledOnce: announcing an archive labels its blobs once: each layer and the
// config as it is unpacked, manifest and index as the image is named. What the import has
// unpacked and named is not unpacked and named again to be prepared.
func TestArchiveIsSettledOnce(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 1, "")
	host, img := n.Hosts[0], imageOf(t, 5)
	archive := harness.DockerArchive(t, n.Dir, img)
	before := containerdCalls(host, "content/Update")
	host.Run("announce", "--from", archive)
	if got := containerdCalls(host, "content/Update") - before; got > 5+3 {
		t.Errorf("%v calls to label blobs, want at most 8", got)
	}
	before = containerdCalls(host, "content/Update")
	host.Run("announce", img.Ref) // which names what others may have imported
	if got := containerdCalls(host, "content/Update") - before; got != 2 {
		t.Errorf("%v calls to label blobs of an image that containerd has, want 2", got)
	}
}

// imageOf is an image of that many small layers.
func imageOf(t *testing.T, layers int) *harness.Image {
	t.Helper()
	var tars [][]byte
	for k := range layers {
		tars = append(tars, harness.TarOf(t, map[string][]byte{fmt.Sprintf("file-%d", k): harness.Words(uint64(1000*layers+k), 1000)}))
	}
	return harness.PackImage(t, fmt.Sprintf("layers-%d:latest", layers), false, tars...)
}

// containerdCalls is how many calls of these services (content) or methods
// (content/Update) the host's containerd has answered.
func containerdCalls(h *harness.Host, services ...string) (calls float64) {
	h.T.Helper()
	out := harness.Run(h.T, h.In(h.T.Context(), "busybox", "wget", "-q", "-O", "-", "http://"+harness.ContainerdMetrics+"/v1/metrics"))
	for line := range strings.Lines(out) {
		labels, value, ok := strings.Cut(line, "} ")
		if !ok || !strings.HasPrefix(labels, "grpc_server_handled_total{") {
			continue
		}
		for _, s := range services {
			service, method, _ := strings.Cut(s, "/")
			if strings.Contains(labels, `grpc_service="containerd.services.`+service+`.v1.`) && strings.Contains(labels, `grpc_method="`+method) {
				v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					h.T.Fatalf("metric %q: %v", line, err)
				}
				calls += v
			}
		}
	}
	return calls
}
