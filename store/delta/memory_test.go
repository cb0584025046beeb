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

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestMemory: with a base that fills the table of seeds, as one of any size does.
func TestMemory(t *testing.T) {
	plain := append(text(1, 20<<20), noise(2, 10<<20)...)
	old, changed := packers()[6].pack(t, plain), packers()[6].pack(t, append(noise(3, 6<<20), plain...))
	for kind, pair := range map[Kind][2][]byte{Bytes: {plain, append(noise(4, 6<<20), plain...)}, Deflate: {old, changed}} {
		base, target := blob(pair[0]), blob(pair[1])
		var delta bytes.Buffer
		if _, _, err := Encode(context.Background(), &delta, kind, base, target, 0); err != nil {
			t.Fatal(err)
		}
		encode := peak(1, func(w io.Writer) { _, _, _ = Encode(context.Background(), w, kind, base, target, 0) })
		decode := peak(map[Kind]int{Bytes: 1, Deflate: 16}[kind], func(w io.Writer) { _, _ = Decode(context.Background(), w, bytes.NewReader(delta.Bytes()), base) })
		if encode == 0 || decode == 0 {
			t.Errorf("%s: nothing was measured", kind)
		}
		t.Logf("%s: encode %.1f MiB, decode %.1f MiB", kind, float64(encode)/(1<<20), float64(decode)/(1<<20))
		if encode > 64<<20 || decode > 48<<20 {
			t.Errorf("%s: encode %d bytes, decode %d; want at most 64 and 48 MiB", kind, encode, decode)
		}
	}
}
