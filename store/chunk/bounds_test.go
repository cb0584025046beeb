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
	enc, p, err := c.Encode(nil, raw, Thorough, false)
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

// TestFrameOfSmallBlocks: a frame may not be cut into so many blocks that decoding it
// takes many times what its chunk does: 4 MiB of empty ones took 60 ms, not 4.
func TestFrameOfSmallBlocks(t *testing.T) {
	t.Parallel()
	frame := func(size, empty int) []byte { // one byte after the other, each in a block, among empty ones
		p := binary.LittleEndian.AppendUint32([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, uint32(size))
		p = append(p, bytes.Repeat([]byte{0, 0, 0}, empty)...)
		for size > 0 {
			run := min(size, 128<<10)
			size -= run
			p = append(binary.LittleEndian.AppendUint32(p, uint32(run)<<3|1<<1)[:len(p)+3], 7)
		}
		p[len(p)-4] |= 1 // the last block
		return p
	}
	c := NewCodec()
	for _, size := range []int{1, 1000, MinBytes, MaxBytes} {
		if out, err := c.Decode(nil, Zstd, frame(size, 0), size); size > 8 && (err != nil || len(out) != size) {
			t.Errorf("%d bytes in large blocks: %v", size, err)
		}
		if _, err := c.Decode(nil, Zstd, frame(size, size/16), size); size > 16 && err == nil {
			t.Errorf("%d bytes: a frame of %d blocks was decoded", size, size/16)
		}
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
