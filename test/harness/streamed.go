package harness

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Streamed is an image with one file in one layer, of which no more than a buffer is
// ever in memory.
type Streamed struct {
	Config     []byte
	layer      digest.Digest
	LayerBytes int64
	fileBytes  int64
	content    func() io.Reader // of the file, without end; the same each time
}

// NewStreamed is a streamed image with a file of this many bytes of content.
func NewStreamed(t *testing.T, fileBytes int64, content func() io.Reader) *Streamed {
	t.Helper()
	s := &Streamed{fileBytes: fileBytes, content: content}
	sum, count := sha256.New(), &counter{}
	if err := s.writeLayer(io.MultiWriter(sum, count)); err != nil {
		t.Fatal(err)
	}
	s.layer, s.LayerBytes = digest.NewDigest(digest.SHA256, sum), count.bytes
	s.Config = Marshal(t, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{s.layer}},
	})
	return s
}

func (s *Streamed) writeLayer(w io.Writer) error {
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: s.fileBytes}); err != nil {
		return err
	}
	if _, err := io.CopyN(tw, s.content(), s.fileBytes); err != nil {
		return err
	}
	return tw.Close()
}

// Write writes what docker save of the image as k3s-dashboard:latest writes.
func (s *Streamed) Write(w io.Writer) error {
	tw := tar.NewWriter(w)
	name := s.layer.Encoded() + "/layer.tar"
	manifest := []byte(`[{"Config":"config.json","RepoTags":["` + ShortName + `"],"Layers":["` + name + `"]}]`)
	var errs []error
	put := func(name string, size int64, content func(io.Writer) error) {
		errs = append(errs, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}), content(tw))
	}
	bytesOf := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	put("config.json", int64(len(s.Config)), bytesOf(s.Config))
	put(name, s.LayerBytes, s.writeLayer)
	put("manifest.json", int64(len(manifest)), bytesOf(manifest))
	return errors.Join(append(errs, tw.Close())...)
}

// Repeated is content that compresses to nearly nothing.
func Repeated() io.Reader { return &repeater{text: bytes.Repeat([]byte("the same all over\n"), 4096)} }

type repeater struct {
	text []byte
	at   int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}

// counter counts what is written to it.
type counter struct{ bytes int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += int64(len(p))
	return len(p), nil
}
