package delta

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"testing"
)

// peak calls run with a writer that measures, at one of every writes, how much more is in use.
func peak(every int, run func(io.Writer)) (most int64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := int64(m.HeapAlloc)
	n := 0
	run(writer(func(p []byte) (int, error) {
		if n++; n%every > 0 {
			return len(p), nil
		}
		runtime.GC()
		runtime.ReadMemStats(&m)
		most = max(most, int64(m.HeapAlloc)-before)
		return len(p), nil
	}))
	return most
}

// allocated is how many bytes run allocates in all.
func allocated(run func(io.Writer)) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(io.Discard)
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestMemory: with a base that fills the table of seeds, as one of any size does. What a
// process takes from the system is more by what was allocated and is in use no more: that is
// little, however many segments there are.
func TestMemory(t *testing.T) {
	plain := append(text(1, 20<<20), noise(2, 10<<20)...)
	old, changed := packers()[6].pack(t, plain), packers()[6].pack(t, append(noise(3, 6<<20), plain...))
	for kind, pair := range map[Kind][2][]byte{Bytes: {plain, append(noise(4, 6<<20), plain...)}, Deflate: {old, changed}} {
		base, target := blob(pair[0]), blob(pair[1])
		var delta bytes.Buffer
		if _, _, err := Encode(context.Background(), &delta, kind, base, target, 0); err != nil {
			t.Fatal(err)
		}
		encode := func(w io.Writer) { _, _, _ = Encode(context.Background(), w, kind, base, target, 0) }
		decode := func(w io.Writer) { _, _ = Decode(context.Background(), w, bytes.NewReader(delta.Bytes()), base) }
		for _, side := range []struct {
			name  string
			run   func(io.Writer)
			every int
			most  int64 // bytes in use
			more  int64 // allocated besides
		}{
			{"encode", encode, 1, 44 << 20, 24 << 20},
			{"decode", decode, map[Kind]int{Bytes: 1, Deflate: 16}[kind], 16 << 20, 16 << 20},
		} {
			used, all := peak(side.every, side.run), allocated(side.run)
			t.Logf("%s, %s: at most %.1f MiB in use, %.1f MiB allocated in all", kind, side.name, float64(used)/(1<<20), float64(all)/(1<<20))
			if used == 0 || used > side.most || all > used+side.more {
				t.Errorf("%s, %s: %d bytes in use, %d allocated; want at most %d in use, and %d besides", kind, side.name, used, all, side.most, side.more)
			}
		}
	}
}
