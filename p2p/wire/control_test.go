package wire

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// TestControlUnderBulk: with a low limit in either direction and as many transfers as
// three fetches may have, a member that is asked for the first time, and so has to be
// shaken hands with, still answers before it is taken for unreachable (virtual time).
func TestControlUnderBulk(t *testing.T) {
	t.Parallel()
	const transfers, within = 36, 2 * time.Second
	for _, rate := range []int64{64 << 10, 100 << 10, 1 << 20} {
		for name, limits := range map[string][2]Limits{
			"upload":   {{UploadBytesPerSec: rate}, {}},
			"download": {{}, {DownloadBytesPerSec: rate}},
		} {
			synctest.Test(t, func(t *testing.T) {
				s := &served{n: 100, chunk: make([]byte, chunk.MaxBytes)}
				c, _ := pipePair(t, &handler{served: s}, limits[0], limits[1])
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				for range transfers {
					wg.Go(func() {
						_, err := c.Chunk(ctx, swarm.Peer{Address: pipeAddr}, testSeed, 3, upTo(chunk.MaxBytes))
						if err == nil || ctx.Err() == nil {
							t.Errorf("%s: a transfer has ended: %v", name, err)
						}
					})
				}
				time.Sleep(3 * time.Second)
				refs := []string{strings.Repeat("r", 30<<10)} // the answer has as much
				for what, ask := range map[string]func() error{
					"a short question":  func() error { _, err := readState(t.Context(), c, pipeAddr, nil); return err },
					"a long answer":     func() error { _, err := readState(t.Context(), c, pipeAddr, refs); return err },
					"what doctor sends": func() error { return c.Echo(t.Context(), pipeAddr, EchoBytes, 0).Reason },
					"what doctor gets":  func() error { return c.Echo(t.Context(), pipeAddr, 0, EchoBytes).Reason },
				} {
					began := time.Now()
					err := ask()
					if took := time.Since(began); err != nil || took > within {
						t.Errorf("%s limit of %s: %s took %v: %v", name, fmt.Sprint(rate>>10, " KiB/s"), what, took, err)
					}
				}
				cancel()
				wg.Wait()
				time.Sleep(time.Minute) // crypto/tls's last words
			})
		}
	}
}
