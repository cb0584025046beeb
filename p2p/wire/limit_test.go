package wire

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// TestLimits: a limit holds to within 5 % over 5 s, and a new one takes effect on
// a running transfer (virtual time).
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{100 << 10, 10 << 20, 200 << 20} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLimiter(Limits{UploadBytesPerSec: rate})
			near, far := net.Pipe()
			var sent atomic.Int64
			c := newConn(near, l, func(n int) { sent.Add(int64(n)) }, func(int) {}, func() {})
			c.bulkOut.Store(true)
			go io.Copy(io.Discard, far)
			go func() {
				b := make([]byte, 1<<20)
				for {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
			measure := func(d time.Duration) float64 {
				before := sent.Load()
				time.Sleep(d)
				return float64(sent.Load()-before) / d.Seconds()
			}
			measure(time.Second) // the first burst
			if got := measure(5 * time.Second); got < 0.95*float64(rate) || got > 1.05*float64(rate) {
				t.Errorf("limit %d: %.0f bytes/s over 5 s", rate, got)
			}
			l.SetLimits(Limits{UploadBytesPerSec: rate / 2})
			measure(time.Second)
			if got := measure(5 * time.Second); got < 0.95*float64(rate)/2 || got > 1.05*float64(rate)/2 {
				t.Errorf("limit changed to %d: %.0f bytes/s over 5 s", rate/2, got)
			}
			c.Close()
			far.Close()
		})
	}
}

// TestTransferLimits: chunks between a server and a client keep to the limit of
// either side, with several transfers sharing it, and one so low that a chunk
// takes longer than a peer may stall (virtual time).
func TestTransferLimits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name           string
		rate           int64
		server, client Limits
	}{
		{"upload", 4 << 20, Limits{UploadBytesPerSec: 4 << 20}, Limits{}},
		{"download", 4 << 20, Limits{}, Limits{DownloadBytesPerSec: 4 << 20}},
		{"low upload", 32 << 10, Limits{UploadBytesPerSec: 32 << 10}, Limits{}},
		{"low download", 128 << 10, Limits{}, Limits{DownloadBytesPerSec: 128 << 10}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &served{n: 100, chunk: make([]byte, chunk.MaxBytes)}
			c, _ := pipePair(t, &handler{served: s}, tc.server, tc.client)
			began := time.Now()
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if _, err := c.Chunk(t.Context(), swarm.Peer{Address: pipeAddr}, testSeed, 3, upTo(chunk.MaxBytes)); err != nil {
						t.Errorf("%s: %v", tc.name, err)
					}
				})
			}
			wg.Wait()
			got := 4 * chunk.MaxBytes / time.Since(began).Seconds()
			if got < 0.95*float64(tc.rate) || got > 1.05*float64(tc.rate) {
				t.Errorf("%s: %.0f bytes/s, want %d within 5 %%", tc.name, got, tc.rate)
			}
		})
	}
}

// TestCounted: what one side has sent the other has received, TLS included.
func TestCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sent, received [2]atomic.Int64
		add := func(n *atomic.Int64) func(int) { return func(b int) { n.Add(int64(b)) } }
		s := &served{n: 100, chunk: make([]byte, chunk.MaxBytes)}
		p := newPipes()
		server := NewServer(ServerConfig{
			Credentials: credentials(t, secret), Handlers: handlers(&handler{served: s}),
			Sent: add(&sent[0]), Received: add(&received[0]),
		})
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(p) }()
		c := NewClient(ClientConfig{
			Credentials: credentials(t, secret), DialContext: p.dial,
			Sent: add(&sent[1]), Received: add(&received[1]),
		})
		if _, err := c.Chunk(t.Context(), swarm.Peer{Address: pipeAddr}, testSeed, 3, upTo(chunk.MaxBytes)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if sent[0].Load() != received[1].Load() || sent[1].Load() != received[0].Load() {
			t.Errorf("sent %d and %d, received %d and %d", sent[0].Load(), sent[1].Load(), received[1].Load(), received[0].Load())
		}
		if over := sent[0].Load() - chunk.MaxBytes; over < 500 || over > chunk.MaxBytes/50 {
			t.Errorf("%d bytes more than the payload sent", over)
		}
		c.Close()
		if err := errors.Join(server.Close(t.Context()), <-ended); err != nil {
			t.Error(err)
		}
	})
}
