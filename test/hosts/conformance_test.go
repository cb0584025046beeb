package hosts

import (
	"testing"

	"github.com/containerd/containerd/v2/client"

	"seeder/store/ctrd"
	"seeder/store/storetest"
	"seeder/test/harness"
)

// TestConformance: what seeder needs of a containerd is so on every version.
func TestConformance(t *testing.T) {
	t.Parallel()
	for version := range harness.Containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			h := harness.NewNetwork(t, "").AddHost(version)
			h.StartContainerd()
			cl := h.Client()
			storetest.Run(t, storetest.Subject{
				Open: func(t *testing.T, cfg ctrd.Config) *ctrd.Containerd {
					cfg.Address = h.Path(harness.Socket)
					c, err := ctrd.Open(cfg)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { c.Close() })
					return c
				},
				Client:  func(*ctrd.Containerd) *client.Client { return cl },
				Collect: func(t *testing.T) { storetest.CollectBy(t, cl) },
				Unpacks: true,
				Blobs:   h.Path(blobsDir),
			})
		})
	}
}
