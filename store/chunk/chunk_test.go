package chunk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestSizeFor(t *testing.T) {
	t.Parallel()
	for blob, want := range map[int64]int64{
		0: 256 << 10, 1 << 20: 256 << 10, 48 << 20: 256 << 10, 64 << 20: 512 << 10, 96 << 20: 512 << 10,
		128 << 20: 1 << 20, 300 << 20: 1 << 20, 500 << 20: 1 << 20, 768 << 20: 1 << 20, 1 << 30: 2 << 20, 4 << 30: 4 << 20, 100 << 30: 4 << 20,
	} {
		if got := SizeFor(blob); got != want {
			t.Errorf("SizeFor(%d) = %d, want %d", blob, got, want)
		}
	}
}

// testIndex has blobs of every awkward size: empty, one byte, exactly one chunk,
// one byte more.
func testIndex(t testing.TB) (Index, [][]byte) {
	t.Helper()
	var blobs []Blob
	var contents [][]byte
	for i, size := range []int{1, 0, MinBytes, MinBytes + 1, 3*MinBytes + 7} {
		b := noise(uint64(i), size)
		sums, err := Sum(t.Context(), bytes.NewReader(b), int64(size), MinBytes)
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, b)
		blobs = append(blobs, Blob{Digest: digest.FromBytes(b), Bytes: int64(size), MediaType: "m", ChunkBytes: MinBytes, Sums: sums, Platforms: []string{"linux/amd64"}})
	}
	x, err := New(ocispec.Descriptor{MediaType: "m", Digest: blobs[0].Digest, Size: 1}, blobs)
	if err != nil {
		t.Fatal(err)
	}
	return x, contents
}

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestIndexCoversEveryByte(t *testing.T) {
	t.Parallel()
	x, contents := testIndex(t)
	got := make([][]byte, len(contents))
	for n := range x.Len() {
		k, i := x.Locate(n)
		off := int64(i) * x.Blobs[k].ChunkBytes
		raw := contents[k][off : off+x.Bytes(n)]
		if sha256.Sum256(raw) != x.Blobs[k].Sums[i] {
			t.Fatalf("chunk %d is not what its sum says", n)
		}
		got[k] = append(got[k], raw...)
	}
	for k := range contents {
		if !bytes.Equal(got[k], contents[k]) {
			t.Errorf("the chunks of blob %d are not the blob", k)
		}
	}
}

func TestIndexRoundTrip(t *testing.T) {
	t.Parallel()
	x, _ := testIndex(t)
	b, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	y, err := Decode(b)
	if err != nil || !reflect.DeepEqual(x, y) {
		t.Fatalf("got %+v %v", y, err)
	}
	// Room for deltas: what a later version adds is passed over.
	more := bytes.Replace(b, []byte(`{"schema":1,`), []byte(`{"schema":1,"deltas":[1],`), 1)
	if _, err := Decode(more); err != nil {
		t.Errorf("an index with an unknown field: %v", err)
	}
	for name, bad := range map[string]string{
		"schema":   strings.Replace(string(b), `"schema":1`, `"schema":2`, 1),
		"size":     strings.Replace(string(b), `"chunk_bytes":262144`, `"chunk_bytes":262145`, 1),
		"too big":  strings.Replace(string(b), `"chunk_bytes":262144`, `"chunk_bytes":8388608`, 1),
		"negative": strings.Replace(string(b), `"bytes":1,`, `"bytes":-1,`, 1),
		"count":    strings.Replace(string(b), `"bytes":1,`, `"bytes":999999999,`, 1),
		"twice":    strings.Replace(string(b), string(x.Blobs[1].Digest), string(x.Blobs[0].Digest), 1),
		"cut":      string(b[:len(b)/2]),
	} {
		if bad == string(b) {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	c := NewCodec()
	text := bytes.Repeat([]byte("the same again "), 40_000)
	for name, tc := range map[string]struct {
		raw  []byte
		want Encoding
	}{
		"text": {text, Zstd}, "noise": {noise(1, 1<<20), Raw}, "tiny": {[]byte("x"), Raw}, "empty": {nil, Raw},
		"noise that begins with text": {append(bytes.Clone(text[:200_000]), noise(2, 1<<20)...), Raw},
	} {
		enc, payload, err := c.Encode(nil, tc.raw, Thorough, false)
		if err != nil || enc != tc.want {
			t.Errorf("%s: encoding %d %v, want %d", name, enc, err, tc.want)
		}
		got, err := c.Decode(nil, enc, payload, len(tc.raw))
		if err != nil || !bytes.Equal(got, tc.raw) {
			t.Errorf("%s: %d bytes came back, %v", name, len(got), err)
		}
		if _, err := c.Decode(nil, enc, payload, len(tc.raw)+1); err == nil {
			t.Errorf("%s: decoded to another length", name)
		}
	}
}

func TestDecodeRefusesBombs(t *testing.T) {
	t.Parallel()
	c := NewCodec()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := w.EncodeAll(make([]byte, 64<<20), nil)
	small := w.EncodeAll(make([]byte, 1000), nil)
	for name, p := range map[string][]byte{
		"says more than the chunk": bomb,
		"another frame behind":     append(bytes.Clone(small), small...),
		"garbage behind":           append(bytes.Clone(small), 1, 2, 3),
		"cut off":                  small[:len(small)-2],
		"nothing":                  nil,
		"skippable":                {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0},
	} {
		if _, err := c.Decode(nil, Zstd, p, 1000); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
	if _, err := c.Decode(nil, 7, small, 1000); err == nil {
		t.Error("an unknown encoding decoded")
	}
}

func TestCompressible(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mediaType string
		head      []byte
		want      bool
	}{
		{"application/vnd.oci.image.layer.v1.tar", []byte("bin/"), true},
		{"application/vnd.oci.image.layer.v1.tar+gzip", nil, false},
		{"application/vnd.docker.image.rootfs.diff.tar.gzip", nil, false},
		{"application/vnd.oci.image.layer.v1.tar+zstd", nil, false},
		{"application/vnd.oci.image.layer.v1.tar", []byte{0x1f, 0x8b, 8}, false},
		{"application/vnd.oci.image.config.v1+json", []byte("{"), true},
	} {
		if got := Compressible(tc.mediaType, tc.head); got != tc.want {
			t.Errorf("%s %x: %v", tc.mediaType, tc.head, got)
		}
	}
}

func FuzzDecodeIndex(f *testing.F) {
	x, _ := testIndex(f)
	b, _ := x.Encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := Decode(b)
		if err != nil {
			return
		}
		for n := range x.Len() {
			if k, i := x.Locate(n); i >= len(x.Blobs[k].Sums) || x.Bytes(n) <= 0 || x.Bytes(n) > MaxBytes {
				t.Fatalf("chunk %d: blob %d, %d", n, k, i)
			}
		}
		e, err := x.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if y, err := Decode(e); err != nil || !reflect.DeepEqual(x, y) {
			t.Fatalf("encode and decode are not inverse: %v", err)
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	c := NewCodec()
	enc, p, _ := c.Encode(nil, bytes.Repeat([]byte("abc"), 5000), Thorough, false)
	f.Add(uint8(enc), p, 15000)
	f.Add(uint8(Raw), []byte("x"), 1)
	f.Fuzz(func(t *testing.T, enc uint8, p []byte, size int) {
		if size < 0 {
			return
		}
		if out, err := c.Decode(nil, Encoding(enc), p, size); err == nil && len(out) != size {
			t.Fatalf("%d bytes, want %d", len(out), size)
		}
	})
}

// benchTar shrinks to about a third, as a layer of programs does: short runs
// that were there before, between bytes that were not.
func benchTar() []byte {
	r := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 0, 1<<20)
	for len(b) < 1<<20 {
		b = append(b, byte(r.Uint32()), byte(r.Uint32()))
		if from := len(b) - 1 - r.IntN(min(len(b)-1, 30_000)+1); from >= 0 {
			b = append(b, b[from:min(from+6+r.IntN(12), len(b))]...)
		}
	}
	return b[:1<<20]
}

func BenchmarkSum(b *testing.B) {
	blob := noise(1, 16<<20)
	b.SetBytes(int64(len(blob)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Sum(b.Context(), bytes.NewReader(blob), int64(len(blob)), 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSumWhole: the sums are Sum's, and the digest is that of all bytes, also where reading ends
// early.
func TestSumWhole(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, MinBytes, 5*MinBytes + 7} {
		blob := noise(uint64(size), size)
		want, err := Sum(t.Context(), bytes.NewReader(blob), int64(size), MinBytes)
		if err != nil {
			t.Fatal(err)
		}
		sums, got, err := SumWhole(t.Context(), bytes.NewReader(blob), int64(size), MinBytes)
		if err != nil || !slices.Equal(sums, want) || got != digest.FromBytes(blob) {
			t.Errorf("%d bytes: %d sums, %s, %v", size, len(sums), got, err)
		}
		if _, _, err := SumWhole(t.Context(), bytes.NewReader(blob), int64(size)+1, MinBytes); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes where one more is expected: %v", size, err)
		}
	}
}

func BenchmarkSumWhole(b *testing.B) {
	blob := noise(1, 64<<20)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, _, err := SumWhole(b.Context(), bytes.NewReader(blob), int64(len(blob)), 512<<10); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	c, raw := NewCodec(), benchTar()
	dst := make([]byte, 0, 2<<20)
	for name, effort := range map[string]Effort{"fast": Fast, "thorough": Thorough} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if enc, _, err := c.Encode(dst, raw, effort, false); err != nil || enc != Zstd {
					b.Fatal(enc, err)
				}
			}
		})
	}
}

func BenchmarkEncodeIncompressible(b *testing.B) {
	c, raw := NewCodec(), noise(1, 1<<20)
	dst := make([]byte, 0, 2<<20)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Encode(dst, raw, Thorough, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeAndVerify(b *testing.B) {
	c, raw := NewCodec(), benchTar()
	enc, payload, err := c.Encode(nil, raw, Thorough, false)
	if err != nil {
		b.Fatal(err)
	}
	dst, sum := make([]byte, 0, 1<<20), sha256.Sum256(raw)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		out, err := c.Decode(dst, enc, payload, len(raw))
		if err != nil || sha256.Sum256(out) != sum {
			b.Fatal(err)
		}
	}
}
