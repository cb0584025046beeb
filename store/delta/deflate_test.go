package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// text is some bytes that compress, and change slowly.
func text(seed uint64, n int) []byte {
	words := noise(seed, 4096)
	var out []byte
	for i, p := range noise(seed+1, n/8+1) {
		at := int(p) * 15
		out = append(out, words[at:at+4+int(p)%9]...)
		out = fmt.Appendf(out, "%d;", i%977)
	}
	return out[:n]
}

type packer struct {
	name string
	pack func(testing.TB, []byte) []byte
}

func packers() (out []packer) {
	for level := -2; level <= 9; level++ {
		out = append(out, packer{fmt.Sprint("go ", level), func(t testing.TB, p []byte) []byte {
			var b bytes.Buffer
			w, err := stdgzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("extra")
			return written(t, w, &b, p)
		}}, packer{fmt.Sprint("klauspost ", level), func(t testing.TB, p []byte) []byte {
			var b bytes.Buffer
			w, err := gzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			return written(t, w, &b, p)
		}})
	}
	var commands [][]string
	for level := 1; level <= 12; level++ {
		if l := fmt.Sprint("-", level); level <= 9 {
			commands = append(commands, []string{"gzip", l}, []string{"pigz", l}, []string{"libdeflate-gzip", l})
		} else {
			commands = append(commands, []string{"libdeflate-gzip", l})
		}
	}
	commands = append(commands, []string{"gzip", "--rsyncable"}, []string{"pigz", "-0"}, []string{"pigz", "-11", "-I", "1"}, []string{"pigz", "-i", "-b", "128"},
		[]string{"pigz", "-R"}, []string{"zopfli", "-c", "--i1", "/dev/stdin"})
	for _, args := range commands {
		out = append(out, packer{fmt.Sprint(args), func(t testing.TB, p []byte) []byte {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skipf("%s is missing; test/install.sh installs it", args[0])
			}
			c := exec.Command(args[0], args[1:]...)
			if args[0] == "zopfli" { // it reads files only
				file := filepath.Join(t.TempDir(), "layer.tar")
				if err := os.WriteFile(file, p, 0o600); err != nil {
					t.Fatal(err)
				}
				c.Args[len(c.Args)-1] = file
			}
			c.Stdin = bytes.NewReader(p)
			b, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}})
	}
	return out
}

func written(t testing.TB, w io.WriteCloser, b *bytes.Buffer, p []byte) []byte {
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAnyGzipComesBack: whichever tool wrote it, at any level, also several members and bytes behind
// them.
func TestAnyGzipComesBack(t *testing.T) {
	old := text(1, 250_000)
	changed := append(append(bytes.Clone(old[:30_000]), "a file near the front"...), old[30_000:]...)
	changed = append(changed, noise(9, 30_000)...)
	for _, p := range packers() {
		t.Run(p.name, func(t *testing.T) {
			base, target := p.pack(t, old), p.pack(t, changed)
			n := len(roundTripAs(t, Deflate, base, target))
			t.Logf("%d bytes of gzip, %d of delta", len(target), n)
			if p.name == "go 6" && n > 60_000 { // 30,000 of it are new
				t.Errorf("the delta has %d bytes of %d, want at most 60,000", n, len(target))
			}
			roundTripAs(t, Deflate, base, append(append(bytes.Clone(target), base...), "trailing"...))
			roundTripAs(t, Deflate, target, p.pack(t, nil))
		})
	}
}

// TestZlibComesBack: what Python's zlib writes at every level, with each strategy, little
// memory and every way to flush.
func TestZlibComesBack(t *testing.T) {
	const program = `
import struct, sys, zlib
data = sys.stdin.buffer.read()
half = len(data) // 2
def give(p):
    sys.stdout.buffer.write(struct.pack("<I", len(p)) + p)
for d in (data[:-5000], data):
    for level in range(-1, 10):
        z = zlib.compressobj(level, zlib.DEFLATED, 31)
        give(z.compress(d) + z.flush())
    for strategy in (zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED):
        for memory in (1, 9):
            z = zlib.compressobj(6, zlib.DEFLATED, 31, memory, strategy)
            give(z.compress(d) + z.flush())
    for how in (zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK):
        z = zlib.compressobj(6, zlib.DEFLATED, 31)
        give(z.compress(d[:half]) + z.flush(how) + z.flush(how) + z.compress(d[half:]) + z.flush())
`
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skipf("Python is missing; test/install.sh installs it: %v", err)
	}
	c := exec.Command("/usr/bin/python3", "-c", program)
	c.Stdin = bytes.NewReader(text(3, 150_000))
	p, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files [][]byte
	for len(p) > 0 {
		n := binary.LittleEndian.Uint32(p)
		files, p = append(files, p[4:4+n]), p[4+n:]
	}
	half := len(files) / 2
	if half != 11+8+4 {
		t.Fatalf("%d files, want %d", len(files), 2*(11+8+4))
	}
	for i, base := range files[:half] {
		n := len(roundTripAs(t, Deflate, base, files[half+i]))
		t.Logf("%d: %d bytes of gzip, %d of delta", i, len(files[half+i]), n)
	}
}

// TestGzipThatIsRefused: when it is encoded, not when it is decoded.
func TestGzipThatIsRefused(t *testing.T) {
	good := packers()[10].pack(t, text(1, 100_000))
	for name, p := range map[string][]byte{
		"cut": good[:len(good)/2], "empty": nil, "plain": text(1, 1000), "cut in the trailer": good[:len(good)-3],
		"type 3":   append(bytes.Clone(good[:10]), 7),
		"not gzip": []byte("\x1f\x8b\x07"),
	} {
		for _, pair := range [][2][]byte{{good, p}, {p, good}} {
			if _, _, err := Encode(context.Background(), io.Discard, Deflate, blob(pair[0]), blob(pair[1]), 0); !errors.Is(err, ErrRefused) {
				t.Errorf("%s: %v, want that it is refused", name, err)
			}
		}
	}
}

// FuzzGzip: what is behind a gzip header comes back to the bit, or is refused.
func FuzzGzip(f *testing.F) {
	base := packers()[10].pack(f, text(1, 3000))
	for _, i := range []int{0, 2, 4, 8, 20} {
		p := packers()[i].pack(f, text(2, 2000))
		f.Add(p)
	}
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, target []byte) {
		var delta, out bytes.Buffer
		_, _, err := Encode(context.Background(), &delta, Deflate, blob(base), blob(target), 0)
		if errors.Is(err, ErrRefused) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(context.Background(), &out, &delta, blob(base)); err != nil || !bytes.Equal(out.Bytes(), target) {
			t.Fatalf("decode: %v", err)
		}
	})
}

// FuzzDecodeGzip: any bytes behind the header of a delta of kind deflate, the lengths of segments
// and pieces too.
func FuzzDecodeGzip(f *testing.F) {
	base, target := packers()[10].pack(f, text(1, 30_000)), packers()[16].pack(f, text(1, 20_000))
	f.Add(roundTripAs(f, Deflate, base, target)[HeaderBytes:])
	f.Add([]byte{0, 0})
	f.Add(append([]byte{0}, bytes.Repeat([]byte{0xff}, 11)...)) // no length has as many bytes
	f.Fuzz(func(t *testing.T, body []byte) { _, _ = decodeFenced(t, Deflate, base, target, body) })
}
