package harness

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageSpec says what a test image holds.
type ImageSpec struct {
	Ref     string
	Says    string // what a container from it prints
	Payload int    // bytes of compressible payload, in a layer of its own
	Random  int    // bytes of payload that does not compress
	Gzip    bool   // layers as gzip blobs
	Seed    uint64 // of the payload
}

// Image is an image in memory, in the form of OCI.
type Image struct {
	Ref      string
	Layers   [][]byte // as stored, the lowest first
	Config   []byte
	Manifest []byte
}

// NewImage packs an image that runs: Debian's static busybox, payload, and a
// script.
func NewImage(t *testing.T, spec ImageSpec) *Image {
	t.Helper()
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is not installed: %v; `make test` installs it", err)
	}
	return PackImage(t, spec.Ref, spec.Gzip,
		TarOf(t, map[string][]byte{"bin/busybox": shell, "bin/sh": shell}),
		TarOf(t, map[string][]byte{"data/text": Words(spec.Seed, spec.Payload), "data/random": Noise(spec.Seed, spec.Random)}),
		TarOf(t, map[string][]byte{"say": []byte("#!/bin/sh\necho " + spec.Says + "\n")}))
}

// PackImage makes an image of layers that are tar files, plain or gzip.
func PackImage(t *testing.T, ref string, gzip bool, layers ...[]byte) *Image {
	t.Helper()
	img := &Image{Ref: ref}
	var diffIDs []digest.Digest
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, layer := range layers {
		diffIDs = append(diffIDs, digest.FromBytes(layer))
		mediaType := ocispec.MediaTypeImageLayer
		if gzip {
			layer, mediaType = Gzipped(t, layer), ocispec.MediaTypeImageLayerGzip
		}
		img.Layers = append(img.Layers, layer)
		manifest.Layers = append(manifest.Layers, Describe(mediaType, layer))
	}
	img.Config = Marshal(t, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/say"}, Env: []string{"PATH=/bin"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	manifest.Config = Describe(ocispec.MediaTypeImageConfig, img.Config)
	img.Manifest = Marshal(t, manifest)
	return img
}

// Describe is the descriptor of a blob.
func Describe(mediaType string, blob []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
}

// Marshal is a value as JSON.
func Marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Bytes is the size of all blobs as stored.
func (img *Image) Bytes() int {
	n := len(img.Config) + len(img.Manifest)
	for _, l := range img.Layers {
		n += len(l)
	}
	return n
}

// Blobs are all blobs by digest.
func (img *Image) Blobs() map[digest.Digest][]byte {
	out := map[digest.Digest][]byte{}
	for _, b := range append([][]byte{img.Manifest, img.Config}, img.Layers...) {
		out[digest.FromBytes(b)] = b
	}
	return out
}

// DockerArchive writes the file that `docker save` writes.
func (img *Image) DockerArchive(t *testing.T, dir string) string {
	t.Helper()
	return DockerArchive(t, dir, img)
}

// DockerArchive writes the file that `docker save` of several images writes.
func DockerArchive(t *testing.T, dir string, imgs ...*Image) string {
	t.Helper()
	files := map[string][]byte{}
	var manifest []map[string]any
	for _, img := range imgs {
		config := digest.FromBytes(img.Config).Encoded() + ".json"
		files[config] = img.Config
		var names []string
		for _, l := range img.Layers {
			name := digest.FromBytes(l).Encoded() + "/layer.tar"
			names = append(names, name)
			files[name] = l
		}
		manifest = append(manifest, map[string]any{"Config": config, "RepoTags": []string{img.Ref}, "Layers": names})
	}
	files["manifest.json"] = Marshal(t, manifest)
	return WriteFile(t, dir, "docker-*.tar", TarOf(t, files))
}

// OCIArchive writes an OCI layout, as buildah and `docker buildx` do.
func (img *Image) OCIArchive(t *testing.T, dir string) string {
	t.Helper()
	return WriteFile(t, dir, "oci-*.tar", TarOf(t, img.OCILayout(t)))
}

// OCILayout is the files of an OCI layout.
func (img *Image) OCILayout(t *testing.T) map[string][]byte {
	t.Helper()
	top := Describe(ocispec.MediaTypeImageManifest, img.Manifest)
	top.Annotations = map[string]string{"io.containerd.image.name": img.Ref}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": Marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}}),
	}
	for d, b := range img.Blobs() {
		files["blobs/sha256/"+d.Encoded()] = b
	}
	return files
}

// WriteFile writes a new file with a name like pattern and returns its path.
func WriteFile(t *testing.T, dir, pattern string, content []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// ServeHTTP is a registry that has this image under any name.
func (img *Image) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, last := path.Split(r.URL.Path)
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(img.Manifest).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(img.Manifest))
	default:
		b, ok := img.Blobs()[digest.Digest(last)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// TarOf is a tar file of these files, in the order of their names, with their directories.
func TarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if d := filepath.Dir(name); d != "." && !dirs[d] {
			dirs[d] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Gzipped is b as one member of gzip.
func Gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Words compress to about a third, as program files do.
func Words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%08x the image %d ", r.Uint32(), r.Uint32()%1000)
	}
	return []byte(b.String()[:n])
}

// Noise does not compress.
func Noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
