package wire

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// BenchmarkChunks moves chunks of 1 MiB over TLS on loopback, four connections at once, and
// says how much CPU both ends and the kernel take for a GB.
func BenchmarkChunks(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &served{n: 100, chunk: make([]byte, 1<<20)}
	server := NewServer(ServerConfig{Credentials: credentials(b, secret), Handlers: handlers(&handler{served: s})})
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); err != nil {
			b.Error(err)
		}
	})
	c := NewClient(ClientConfig{Credentials: credentials(b, secret)})
	peer := swarm.Peer{Address: l.Addr().String()}
	b.SetBytes(int64(len(s.chunk)))
	before := used(b)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			buf := make([]byte, chunk.MaxBytes)
			lend := func(n int, bytes int64) *swarm.Incoming { return &swarm.Incoming{Payload: buf[:bytes]} }
			for left.Add(-1) >= 0 {
				if _, err := c.Chunk(b.Context(), peer, testSeed, 3, lend); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric((used(b)-before)/(float64(b.N*len(s.chunk))/1e9), "CPU-s/GB")
	c.Close()
	if err := server.Close(b.Context()); err != nil {
		b.Error(err)
	}
	serving.Wait()
}

// used is the CPU time of this process in seconds.
func used(b *testing.B) float64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
