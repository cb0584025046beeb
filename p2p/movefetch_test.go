package p2p_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestClusterAddressChangesInAFetch: a fetch goes on where the host that fetches, or the
// one that serves, gets another address in the middle of it, and chunks that were verified
// are not fetched again.
func TestClusterAddressChangesInAFetch(t *testing.T) {
	t.Parallel()
	for _, who := range []int{0, 1} {
		t.Run(map[int]string{0: "serving", 1: "fetching"}[who], func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newMobile(t, 2)
				reg := prometheus.NewRegistry()
				from, to := c.nodes[0], c.nodes[1]
				from.cfg.UploadLimit = 128 << 10
				to.cfg.Registerer = reg
				c.start(c.nodes...)
				c.within(5*time.Second, "all see all", c.allAlive)
				ref := refFor("large", "all")
				a := from.store.Add(ref, blob(1, 8<<20), 64<<10)
				if _, err := from.AnnouncePrepared(context.Background(), a); err != nil {
					t.Fatal(err)
				}
				c.published(from, ref)
				verified := func() int { return int(value(t, reg, "seeder_chunks_verified_total")) }
				c.within(2*time.Minute, "the fetch is in the middle", func() error {
					if n := verified(); n < 32 {
						return fmt.Errorf("%d chunks", n)
					}
					return nil
				})
				before := verified()
				if before > 100 {
					t.Fatalf("%d chunks are there already", before)
				}
				c.nodes[who].host.SetIP("10.9.0.1")
				c.within(10*time.Second, "the host is known at its new address", func() error { return c.knownAt(c.nodes[who], "10.9.0.1") })
				c.within(5*time.Minute, "all hold it", c.converged)
				// Chunks that were on their way when the address changed come again.
				t.Logf("%d chunks before the change, %d at the end", before, verified())
				if n, twice := verified(), value(t, reg, "seeder_chunk_duplicate_bytes_total"); n > 128+1 || twice > 16*64<<10 {
					t.Errorf("%d chunks were verified for an image of 128, %.0f bytes came twice; %d were there before", n, twice, before)
				}
			})
		})
	}
}
