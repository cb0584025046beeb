package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
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
	for _, args := range [][]string{{"gzip", "-1"}, {"gzip", "-6"}, {"gzip", "-9"}, {"pigz", "-1"}, {"pigz", "-6"}, {"pigz", "-11"}, {"zopfli", "-c", "--i1", "/dev/stdin"}, {"libdeflate-gzip", "-1"}, {"libdeflate-gzip", "-12"},
		{"/usr/bin/python3", "-c", "import gzip,sys; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read(), 6))"}} {
		out = append(out, packer{fmt.Sprint(args[:2]), func(t testing.TB, p []byte) []byte {
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

// TestAnyGzipComesBack: whoever wrote it, at any level, also several members and bytes behind
// them.
func TestAnyGzipComesBack(t *testing.T) {
	old := text(1, 900_000)
	changed := append(append(bytes.Clone(old[:30_000]), "a file near the front"...), old[30_000:]...)
	changed = append(changed, noise(9, 100_000)...)
	for _, p := range packers() {
		t.Run(p.name, func(t *testing.T) {
			base, target := p.pack(t, old), p.pack(t, changed)
			n := len(roundTripAs(t, Deflate, base, target))
			t.Logf("%d bytes of gzip, %d of delta", len(target), n)
			if p.name == "go 6" && n > 200_000 { // 100,000 of it are new
				t.Errorf("the delta has %d bytes of %d, want at most 200,000", n, len(target))
			}
			roundTripAs(t, Deflate, base, append(append(bytes.Clone(target), base...), "trailing"...))
			roundTripAs(t, Deflate, target, p.pack(t, nil))
		})
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

// FuzzDecodeGzip: any bytes behind the header of a delta of kind deflate write nothing beyond
// the target's size.
func FuzzDecodeGzip(f *testing.F) {
	base, target := packers()[10].pack(f, text(1, 30_000)), packers()[16].pack(f, text(1, 20_000))
	delta := roundTripAs(f, Deflate, base, target)
	f.Add(delta[HeaderBytes:])
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		var out bytes.Buffer
		p := append(bytes.Clone(delta[:HeaderBytes]), body...)
		_, err := Decode(context.Background(), &out, bytes.NewReader(p), blob(base))
		if out.Len() > len(target) || err == nil && !bytes.Equal(out.Bytes(), target) {
			t.Fatalf("%d bytes written, the target has %d: %v", out.Len(), len(target), err)
		}
	})
}
