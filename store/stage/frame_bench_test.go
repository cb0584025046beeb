package stage

import (
	"bytes"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"seeder/store/chunk"
)

// BenchmarkFrame opens and reads raw frames of 1 MiB that were put a moment ago, as a host
// does that passes an image on, and says how much CPU that takes for a GB.
func BenchmarkFrame(b *testing.B) {
	const chunks = 64
	blob := make([]byte, chunks<<20)
	sums, err := chunk.Sum(b.Context(), bytes.NewReader(blob), int64(len(blob)), 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	info := chunk.Blob{Digest: digest.FromBytes(blob), Bytes: int64(len(blob)), ChunkBytes: 1 << 20, Sums: sums}
	x := openBlob(b, openDir(b, b.TempDir(), 0), fixture{info: info}, true)
	defer x.Close()
	for n := range chunks {
		if err := x.Put(n, chunk.Raw, blob[n<<20:(n+1)<<20]); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 256<<10)
	b.SetBytes(1 << 20)
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	for n := range b.N {
		_, _, r, err := x.Frame(n % chunks)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/(float64(b.N)*(1<<20)), "CPU-s/GB")
}
