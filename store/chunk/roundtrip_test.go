package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// contents are texts of n bytes that compress in different ways: one byte again and
// again, a short pattern, JSON as configs and manifests are, a few symbols, noise.
func contents(n int) map[string][]byte {
	json := []byte(`{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh","-c","echo small"]},"rootfs":{"type":"layers","diff_ids":["sha256:0123456789abcdef"]}}`)
	few := noise(uint64(n), n)
	for i := range few {
		few[i] &= 3
	}
	return map[string][]byte{
		"run":     make([]byte, n),
		"pattern": bytes.Repeat([]byte("ab"), n/2+1)[:n],
		"json":    bytes.Repeat(json, n/len(json)+1)[:n],
		"few":     few,
		"noise":   noise(uint64(n), n),
	}
}

var efforts = map[string]Effort{"fast": Fast, "thorough": Thorough}

// roundTrip encodes raw and decodes the frame as a receiver does.
func roundTrip(c *Codec, dst, out, raw []byte, effort Effort) (Encoding, error) {
	enc, payload, err := c.Encode(dst, raw, effort, false)
	if err != nil {
		return enc, fmt.Errorf("encode: %w", err)
	}
	if len(payload) > len(raw) {
		return enc, fmt.Errorf("a frame of %d bytes for a chunk of %d", len(payload), len(raw))
	}
	got, err := c.Decode(out, enc, payload, len(raw))
	if err != nil {
		return enc, fmt.Errorf("encoding %d, decode: %w", enc, err)
	}
	if !bytes.Equal(got, raw) {
		return enc, fmt.Errorf("encoding %d: %d other bytes came back", enc, len(got))
	}
	for _, n := range []int{len(raw) - 1, len(raw) + 1} {
		if n < 0 {
			continue
		}
		if _, err := c.Decode(out, enc, payload, n); !errors.Is(err, ErrFrame) {
			return enc, fmt.Errorf("encoding %d: decoded to %d bytes: %v", enc, n, err)
		}
	}
	return enc, nil
}

// TestEverySizeTravels: what the sender makes of a chunk of any length, the receiver
// takes. Every length from 0 to 64 KiB, and those around the edges of chunks and of
// the blocks of zstd, at both efforts.
func TestEverySizeTravels(t *testing.T) {
	t.Parallel()
	step, small := 1, 1
	if raceDetector {
		step, small = 61, 11 // it takes minutes; `make unit` runs every size without the detector
	}
	for name, effort := range efforts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := NewCodec()
			dst, out := make([]byte, 0, MaxBytes+1024), make([]byte, 0, MaxBytes)
			shrank, failed := 0, 0
			all := contents(MaxBytes)
			check := func(n int, kinds ...string) {
				for _, kind := range kinds {
					enc, err := roundTrip(c, dst, out, all[kind][:n], effort)
					if err != nil {
						if failed++; failed <= 10 {
							t.Errorf("%s of %d bytes: %v", kind, n, err)
						}
					}
					if enc == Zstd {
						shrank++
					}
				}
			}
			for n := 0; n < 2048; n += small {
				check(n, "run", "pattern", "json", "few", "noise")
			}
			for n := 2048; n <= 64<<10; n += step {
				check(n, "json")
			}
			for _, edge := range []int{64 << 10, 128 << 10, MinBytes, MinBytes + 128<<10, 2 * MinBytes, MaxBytes} {
				for _, n := range []int{edge - 1, edge, edge + 1} {
					if n <= MaxBytes {
						check(n, "run", "json", "few", "noise")
					}
				}
			}
			if failed > 0 {
				t.Errorf("%d failed in all", failed)
			}
			if shrank < 60_000/step {
				t.Errorf("only %d frames were compressed; the test shows little", shrank)
			}
		})
	}
}

// TestLastChunkTravels: the last chunk of a blob has whatever length is left.
func TestLastChunkTravels(t *testing.T) {
	t.Parallel()
	c := NewCodec()
	for rest := range 600 {
		blob := bytes.Repeat([]byte("the same again "), (MinBytes+rest)/15+1)[:MinBytes+rest]
		b := Blob{Bytes: int64(len(blob)), ChunkBytes: MinBytes}
		last := Chunks(b.Bytes, b.ChunkBytes) - 1
		raw := blob[last*MinBytes:]
		if len(raw) != b.ChunkLen(last) {
			t.Fatalf("a blob of %d bytes: its last chunk has %d bytes, ChunkLen says %d", len(blob), len(raw), b.ChunkLen(last))
		}
		if last == 0 { // the whole blob is one chunk, which TestEverySizeTravels has
			continue
		}
		for name, effort := range efforts {
			if _, err := roundTrip(c, nil, nil, raw, effort); err != nil {
				t.Errorf("%s, a last chunk of %d bytes: %v", name, rest, err)
			}
		}
	}
}

// FuzzRoundTrip: a chunk survives its frame, at both efforts, also cut to a part and
// repeated, so that long ones are reached from short inputs.
func FuzzRoundTrip(f *testing.F) {
	for _, n := range []int{0, 1, 18, 19, 245, 255, 256, 1000} {
		for _, raw := range contents(n) {
			f.Add(raw, uint16(1))
		}
	}
	f.Add([]byte("many times over "), uint16(20_000))
	c := NewCodec()
	f.Fuzz(func(t *testing.T, raw []byte, times uint16) {
		raw = bytes.Repeat(raw, max(1, min(int(times), MaxBytes/max(1, len(raw)))))
		if len(raw) > MaxBytes {
			return
		}
		for name, effort := range efforts {
			if _, err := roundTrip(c, nil, nil, raw, effort); err != nil {
				t.Fatalf("%s, %d bytes: %v", name, len(raw), err)
			}
		}
	})
}
