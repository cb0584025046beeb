package test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

const pinLabel = "io.cri-containerd.pinned"

// pinned are the names that the kubelet's garbage collection leaves alone.
func (h *host) pinned() []string {
	h.t.Helper()
	list, err := h.client().ImageService().List(h.t.Context(), fmt.Sprintf("labels.%q", pinLabel))
	if err != nil {
		h.t.Fatal(err)
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
func (h *host) wantPinned(want ...string) {
	h.t.Helper()
	slices.Sort(want)
	eventually(h.t, 90*time.Second, "the pins on "+h.name, func() error {
		if got := h.pinned(); !slices.Equal(got, want) {
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
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	byDigest := func(d digest.Digest) string { return strings.TrimSuffix(full, ":latest") + "@" + d.String() }
	var targets []digest.Digest
	for i := range 21 {
		says := fmt.Sprint("build ", i)
		a.importImage(imageSpec{ref: short, says: says, payload: 1 << 16, seed: uint64(i)})
		if i == 0 {
			a.run("announce", short)
		}
		for _, h := range n.hosts {
			h.becomes(says)
		}
		targets = append(targets, a.target(full))
	}
	last, before := targets[20], targets[19]
	for _, h := range n.hosts {
		h.wantPinned(full, byDigest(last))
		h.wantLeases(before)
	}
	for _, h := range n.hosts {
		h.seeder.stop(t, syscall.SIGTERM)
	}
	for _, d := range targets[:5] { // as an earlier seeder left them
		a.ctr("images", "label", byDigest(d), pinLabel+"=pinned")
	}
	a.startSeeder()
	b.startSeeder("SEEDER_IMAGES_PIN=false")
	a.wantPinned(full, byDigest(last))
	b.wantPinned()
	a.ready("build 20")
	b.ready("build 20")
}
