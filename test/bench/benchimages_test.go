package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

// benchSet is one image or several to be moved.
type benchSet struct {
	refs    []string // short
	blobs   []int64  // their sizes
	archive func(t *testing.T, dir string) string
	content func() []byte // of all layers; nil where it does not go into memory
}

func (l benchSet) names() []string {
	var out []string
	for _, ref := range l.refs {
		out = append(out, fullName(ref))
	}
	return out
}

// setOf is a set of images in memory.
func setOf(imgs ...*harness.Image) benchSet {
	l := benchSet{}
	seen := map[digest.Digest]bool{}
	for _, img := range imgs {
		l.refs = append(l.refs, img.Ref)
		for d, b := range img.Blobs() {
			if !seen[d] {
				l.blobs = append(l.blobs, int64(len(b)))
			}
			seen[d] = true
		}
	}
	l.archive = func(t *testing.T, dir string) string { return harness.DockerArchive(t, dir, imgs...) }
	l.content = func() []byte {
		var all [][]byte
		for _, img := range imgs {
			all = append(all, img.Layers...)
		}
		return bytes.Join(all, nil)
	}
	return l
}

// benchLoads are made once: the files of this machine take a while to read.
var benchLoads sync.Map

// benchLoad makes an image of about so many bytes as stored: raw and gzip of this
// machine's programs and libraries in four layers, random of what does not
// compress. tiny are 100 images of 20 layers of a kilobyte each, huge has one
// layer of 4 GiB.
func benchLoad(t *testing.T, kind string, size int) benchSet {
	t.Helper()
	if l, ok := benchLoads.Load(kind); ok {
		return l.(benchSet)
	}
	var l benchSet
	switch kind {
	case "raw", "gzip":
		if kind == "gzip" {
			size *= 3
		}
		var layers [][]byte
		for _, files := range rootFiles(t, size, 4) {
			layers = append(layers, harness.TarOf(t, files))
		}
		l = setOf(harness.PackImage(t, harness.ShortName, kind == "gzip", layers...))
	case "random":
		var layers [][]byte
		for i := range 4 {
			layers = append(layers, harness.TarOf(t, map[string][]byte{fmt.Sprintf("noise-%d", i): harness.Noise(uint64(i), size/4)}))
		}
		l = setOf(harness.PackImage(t, harness.ShortName, false, layers...))
	case "tiny":
		var imgs []*harness.Image
		for i := range 100 {
			var layers [][]byte
			for k := range 20 {
				layers = append(layers, harness.TarOf(t, map[string][]byte{fmt.Sprintf("tiny-%d", k): harness.Words(uint64(100*i+k), 1000)}))
			}
			imgs = append(imgs, harness.PackImage(t, fmt.Sprintf("tiny-%02d:latest", i), false, layers...))
		}
		l = setOf(imgs...)
	case "huge":
		l = hugeImage(t, 4<<30)
	default:
		t.Fatalf("no such image: %s", kind)
	}
	benchLoads.Store(kind, l)
	return l
}

// hugeImage has one layer with a file that does not compress.
func hugeImage(t *testing.T, size int64) benchSet {
	t.Helper()
	img := harness.NewStreamed(t, size, func() io.Reader { return rand.NewChaCha8([32]byte{1}) })
	archive := func(t *testing.T, dir string) string {
		t.Helper()
		f, err := os.CreateTemp(dir, "huge-*.tar")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(img.Write(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	return benchSet{refs: []string{harness.ShortName}, blobs: []int64{img.LayerBytes, int64(len(img.Config)), 500}, archive: archive}
}

// rootFiles are files of this machine's /usr, as a root file system has them, in
// parts of equal size.
func rootFiles(t *testing.T, size, parts int) []map[string][]byte {
	t.Helper()
	out := []map[string][]byte{{}}
	total := 0
	enough := errors.New("enough")
	for _, dir := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil || info.Size() > int64(size)/8 {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			out[len(out)-1][strings.TrimPrefix(path, "/")] = b
			if total += len(b); total >= size {
				return enough
			}
			if total >= size*len(out)/parts {
				out = append(out, map[string][]byte{})
			}
			return nil
		})
		if errors.Is(err, enough) {
			return out
		}
	}
	t.Logf("this machine has only %d MB of files in /usr", total>>20)
	return out
}
