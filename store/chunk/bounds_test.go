package chunk

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestDecodeStopsAtItsBounds: a small text that stands for a large structure is
// refused before the structure is built.
func TestDecodeStopsAtItsBounds(t *testing.T) { // not parallel: it counts the process's memory
	head := `{"schema":1,"target":{},"blobs":[`
	for name, p := range map[string]string{
		"blobs":     head + strings.Repeat("{},", 2_500_000) + "{}]}",
		"platforms": head + `{"platforms":[` + strings.Repeat(`"",`, 2_500_000) + `""]}]}`,
		"no array":  `{"schema":1,"target":{},"blobs":{}}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode([]byte(p))
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "array") {
			t.Errorf("%s: %.200v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: %d bytes of text took %d bytes of memory", name, len(p), got)
		}
	}
}

// TestOneFrameOnly: whatever follows the frame of a chunk makes it another
// payload, even where it decodes to nothing.
func TestOneFrameOnly(t *testing.T) {
	t.Parallel()
	c := NewCodec()
	raw := bytes.Repeat([]byte("one frame "), 50_000)
	enc, p, err := c.Encode(nil, raw, Thorough)
	if err != nil || enc != Zstd {
		t.Fatal(enc, err)
	}
	if out, err := c.Decode(nil, Zstd, p, len(raw)); err != nil || !bytes.Equal(out, raw) {
		t.Fatal(err)
	}
	w, err := zstd.NewWriter(nil, zstd.WithZeroFrames(true))
	if err != nil {
		t.Fatal(err)
	}
	skippable := binary.LittleEndian.AppendUint32(nil, 0x184D2A50)
	skippable = binary.LittleEndian.AppendUint32(skippable, 3)
	for name, tail := range map[string][]byte{
		"empty frame": w.EncodeAll(nil, nil), "skippable frame": append(skippable, 1, 2, 3), "the frame again": p, "a byte": {0},
	} {
		if _, err := c.Decode(nil, Zstd, append(bytes.Clone(p), tail...), len(raw)); err == nil {
			t.Errorf("%s after the frame was accepted", name)
		}
	}
	if _, err := c.Decode(nil, Zstd, w.EncodeAll(raw, nil), len(raw)); err != nil {
		t.Errorf("a frame with a checksum: %v", err)
	}
}

func TestBuffers(t *testing.T) {
	t.Parallel()
	var b Buffers
	for _, n := range []int{0, 1, MinBytes, MinBytes + 1, 2 * MinBytes, 3 * MinBytes, MaxBytes - 1, MaxBytes} {
		p := b.Get(n)
		if len(p) != n || cap(p) < n || cap(p) > MaxBytes || (n > MinBytes && cap(p) >= 2*n) {
			t.Errorf("%d bytes: len %d cap %d", n, len(p), cap(p))
		}
		b.Put(p)
	}
	b.Put(make([]byte, 7)) // not one of its own
	if p := b.Get(8); len(p) != 8 {
		t.Errorf("got %d bytes", len(p))
	}
}
