package hosts

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

const pinLabel = "io.cri-containerd.pinned"

// pinned are the names that the kubelet's garbage collection leaves alone.
func pinned(h *harness.Host) []string {
	h.T.Helper()
	list, err := h.Client().ImageService().List(h.T.Context(), fmt.Sprintf("labels.%q", pinLabel))
	if err != nil {
		h.T.Fatal(err)
	}
	out := []string{}
	for _, img := range list {
		if img.Labels[pinLabel] != "" {
			out = append(out, img.Name)
		}
	}
	slices.Sort(out)
	return out
}

// wantPinned waits until exactly these names are pinned.
func wantPinned(h *harness.Host, want ...string) {
	h.T.Helper()
	slices.Sort(want)
	harness.Eventually(h.T, 90*time.Second, "the pins on "+h.Name, func() error {
		if got := pinned(h); !slices.Equal(got, want) {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// TestTwentyBuilds: builds that are imported under an announced name one after the
// other leave no pin and no lease behind but those of the announced version and of the
// one before it, on the host that imports them as on the others. What an earlier seeder
// left pinned is released at the start, and so is all with images.pin: false.
func TestTwentyBuilds(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	byDigest := func(d digest.Digest) string {
		return strings.TrimSuffix(harness.FullName, ":latest") + "@" + d.String()
	}
	var targets []digest.Digest
	for i := range 21 {
		says := fmt.Sprint("build ", i)
		a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Payload: 1 << 16, Seed: uint64(i)})
		if i == 0 {
			a.Run("announce", harness.ShortName)
		}
		for _, h := range n.Hosts {
			becomes(h, says)
		}
		targets = append(targets, a.Target(harness.FullName))
	}
	last, before := targets[20], targets[19]
	for _, h := range n.Hosts {
		wantPinned(h, harness.FullName, byDigest(last))
		wantLeases(h, before)
	}
	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGTERM)
	}
	for _, d := range targets[:5] { // as an earlier seeder left them
		a.Ctr("images", "label", byDigest(d), pinLabel+"=pinned")
	}
	a.StartSeeder()
	b.StartSeeder("SEEDER_IMAGES_PIN=false")
	wantPinned(a, harness.FullName, byDigest(last))
	wantPinned(b)
	a.Ready("build 20")
	b.Ready("build 20")
}
