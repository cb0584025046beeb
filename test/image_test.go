package test

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

// imageSpec says what a test image holds.
type imageSpec struct {
	ref     string
	says    string // what a container from it prints
	payload int    // bytes of compressible payload, in a layer of its own
	random  int    // bytes of payload that does not compress
	gzip    bool   // layers as gzip blobs
	seed    uint64 // of the payload
}

// image is an image in memory, in the form of OCI.
type image struct {
	ref      string
	layers   [][]byte // as stored, the lowest first
	config   []byte
	manifest []byte
}

// newImage packs an image that runs: Debian's static busybox, payload, and a
// script.
func newImage(t *testing.T, spec imageSpec) *image {
	t.Helper()
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is not installed: %v; `make test` installs it", err)
	}
	return packImage(t, spec.ref, spec.gzip,
		tarOf(t, map[string][]byte{"bin/busybox": shell, "bin/sh": shell}),
		tarOf(t, map[string][]byte{"data/text": words(spec.seed, spec.payload), "data/random": noise(spec.seed, spec.random)}),
		tarOf(t, map[string][]byte{"say": []byte("#!/bin/sh\necho " + spec.says + "\n")}))
}

// packImage makes an image of layers that are tar files, plain or gzip.
func packImage(t *testing.T, ref string, gzip bool, layers ...[]byte) *image {
	t.Helper()
	img := &image{ref: ref}
	var diffIDs []digest.Digest
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, layer := range layers {
		diffIDs = append(diffIDs, digest.FromBytes(layer))
		mediaType := ocispec.MediaTypeImageLayer
		if gzip {
			layer, mediaType = gzipped(t, layer), ocispec.MediaTypeImageLayerGzip
		}
		img.layers = append(img.layers, layer)
		manifest.Layers = append(manifest.Layers, describe(mediaType, layer))
	}
	img.config = marshal(t, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/say"}, Env: []string{"PATH=/bin"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	manifest.Config = describe(ocispec.MediaTypeImageConfig, img.config)
	img.manifest = marshal(t, manifest)
	return img
}

func describe(mediaType string, blob []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bytes is the size of all blobs as stored.
func (img *image) bytes() int {
	n := len(img.config) + len(img.manifest)
	for _, l := range img.layers {
		n += len(l)
	}
	return n
}

// blobs are all blobs by digest.
func (img *image) blobs() map[digest.Digest][]byte {
	out := map[digest.Digest][]byte{}
	for _, b := range append([][]byte{img.manifest, img.config}, img.layers...) {
		out[digest.FromBytes(b)] = b
	}
	return out
}

// dockerArchive writes the file that `docker save` writes.
func (img *image) dockerArchive(t *testing.T, dir string) string {
	t.Helper()
	return dockerArchive(t, dir, img)
}

// dockerArchive writes the file that `docker save` of several images writes.
func dockerArchive(t *testing.T, dir string, imgs ...*image) string {
	t.Helper()
	files := map[string][]byte{}
	var manifest []map[string]any
	for _, img := range imgs {
		config := digest.FromBytes(img.config).Encoded() + ".json"
		files[config] = img.config
		var names []string
		for _, l := range img.layers {
			name := digest.FromBytes(l).Encoded() + "/layer.tar"
			names = append(names, name)
			files[name] = l
		}
		manifest = append(manifest, map[string]any{"Config": config, "RepoTags": []string{img.ref}, "Layers": names})
	}
	files["manifest.json"] = marshal(t, manifest)
	return writeFile(t, dir, "docker-*.tar", tarOf(t, files))
}

// ociArchive writes an OCI layout, as buildah and `docker buildx` do.
func (img *image) ociArchive(t *testing.T, dir string) string {
	t.Helper()
	return writeFile(t, dir, "oci-*.tar", tarOf(t, img.ociLayout(t)))
}

func (img *image) ociLayout(t *testing.T) map[string][]byte {
	t.Helper()
	top := describe(ocispec.MediaTypeImageManifest, img.manifest)
	top.Annotations = map[string]string{"io.containerd.image.name": img.ref}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}}),
	}
	for d, b := range img.blobs() {
		files["blobs/sha256/"+d.Encoded()] = b
	}
	return files
}

func writeFile(t *testing.T, dir, pattern string, content []byte) string {
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
func (img *image) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, last := path.Split(r.URL.Path)
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(img.manifest).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(img.manifest))
	default:
		b, ok := img.blobs()[digest.Digest(last)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
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

func gzipped(t *testing.T, b []byte) []byte {
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

// words compress to about a third, as program files do.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%08x the image %d ", r.Uint32(), r.Uint32()%1000)
	}
	return []byte(b.String()[:n])
}

// noise does not compress.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
