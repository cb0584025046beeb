package hosts

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestContentPruned: layers that somebody lets containerd collect come back on every
// version of it.
func TestContentPruned(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 1, "")
	a := n.Hosts[0]
	for _, version := range slices.Sorted(maps.Keys(harness.Containerds)) {
		h := n.AddHost(version)
		h.StartContainerd()
		h.StartSeeder("SEEDER_LOG_LEVEL=debug")
	}
	a.AwaitMembers(len(n.Hosts))
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Random: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	a.ImportImage(harness.ImageSpec{Ref: "other:v1", Says: "hello", Payload: 1 << 20, Random: 1 << 20, Seed: 2})
	for round := range 3 {
		for _, h := range n.Hosts[1:] {
			h.Ctr("content", "prune", "references")
			collect(h)
		}
		if round == 0 {
			a.Run("announce", "other:v1")
		}
		for _, h := range n.Hosts[1:] {
			cl := h.Client()
			for _, ref := range []string{harness.FullName, "docker.io/library/other:v1"} {
				harness.Eventually(t, 60*time.Second, fmt.Sprintf("round %d: %s is whole on %s with containerd %s", round, ref, h.Name, h.Version), func() error {
					return whole(t.Context(), cl, ref)
				})
			}
		}
	}
}
