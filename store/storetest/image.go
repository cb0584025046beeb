package storetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pierrec/lz4/v4"
)

// Image is an OCI image in memory: an index where it has several manifests.
type Image struct {
	Ref    string
	Target ocispec.Descriptor
	Blobs  map[digest.Digest][]byte

	Manifests []Manifest // one for each platform, in order
}

// Manifest is what belongs to one platform.
type Manifest struct {
	Descriptor ocispec.Descriptor
	Config     ocispec.Descriptor
	Layers     []ocispec.Descriptor
	DiffIDs    []digest.Digest
}

// NewImage makes an image of two layers, one plain and one gzip, for this host's
// platform. The content follows from seed.
func NewImage(t testing.TB, ref string, seed uint64) *Image {
	t.Helper()
	img := &Image{Ref: ref, Blobs: map[digest.Digest][]byte{}}
	img.Target = img.manifest(t, platforms.DefaultSpec(), seed).Descriptor
	return img
}

// NewIndex makes an image for several platforms, e.g. linux/arm64, with an
// attestation manifest for each as BuildKit adds it.
func NewIndex(t testing.TB, ref string, seed uint64, names ...string) *Image {
	t.Helper()
	img := &Image{Ref: ref, Blobs: map[digest.Digest][]byte{}}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, name := range names {
		p, err := platforms.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		d := img.manifest(t, p, seed+uint64(i)<<32).Descriptor
		d.Platform = &p
		idx.Manifests = append(idx.Manifests, d, img.attestation(t, d.Digest))
	}
	img.Target = img.json(t, ocispec.MediaTypeImageIndex, idx)
	return img
}

// attestation adds what says how a manifest was built; no platform runs it.
func (img *Image) attestation(t testing.TB, of digest.Digest) ocispec.Descriptor {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.json(t, ocispec.MediaTypeImageConfig, map[string]string{"of": of.String()}),
		Layers: []ocispec.Descriptor{img.json(t, "application/vnd.in-toto+json", map[string]string{"subject": of.String()})},
	}
	d := img.json(t, ocispec.MediaTypeImageManifest, m)
	d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.String()}
	return d
}

func (img *Image) manifest(t testing.TB, p ocispec.Platform, seed uint64) Manifest {
	t.Helper()
	plain := layer(t, fmt.Sprintf("base-%d", seed), seed)
	other := layer(t, fmt.Sprintf("app-%d", seed), seed+1)
	m := Manifest{
		Layers:  []ocispec.Descriptor{img.add(ocispec.MediaTypeImageLayer, plain), img.add(ocispec.MediaTypeImageLayerGzip, packed(t, other))},
		DiffIDs: []digest.Digest{digest.FromBytes(plain), digest.FromBytes(other)},
	}
	m.Config = img.json(t, ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: m.DiffIDs}})
	m.Descriptor = img.json(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, Config: m.Config, Layers: m.Layers})
	img.Manifests = append(img.Manifests, m)
	return m
}

func (img *Image) add(mediaType string, b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	img.Blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (img *Image) json(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return img.add(mediaType, b)
}

// layer is a tar of one file of 100 kB, half of which compresses.
func layer(t testing.TB, name string, seed uint64) []byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	data := bytes.Repeat([]byte(name+" "), 50_000/(len(name)+1))
	for range 50_000 {
		data = append(data, byte(rng.Uint32()))
	}
	return tarOf(t, map[string][]byte{name: data})
}

func packed(t testing.TB, b []byte) []byte {
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

func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b := files[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// OCIArchive is the image as an OCI layout in a tar file, without the blobs in
// absent. An empty Ref gives it no name.
func (img *Image) OCIArchive(t testing.TB, absent ...digest.Digest) []byte {
	t.Helper()
	return OCIArchiveOf(t, map[string]*Image{img.Ref: img}, absent...)
}

// OCIArchiveOf is one OCI layout of several images, each under its name.
func OCIArchiveOf(t testing.TB, named map[string]*Image, absent ...digest.Digest) []byte {
	t.Helper()
	return tarOf(t, OCIFiles(t, named, absent...))
}

// OCIFiles are the files of an OCI layout.
func OCIFiles(t testing.TB, named map[string]*Image, absent ...digest.Digest) map[string][]byte {
	t.Helper()
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		top := named[name].Target
		if name != "" {
			top.Annotations = map[string]string{"io.containerd.image.name": name}
		}
		idx.Manifests = append(idx.Manifests, top)
		for d, b := range named[name].Blobs {
			files["blobs/sha256/"+d.Encoded()] = b
		}
	}
	var err error
	if files["index.json"], err = json.Marshal(idx); err != nil {
		t.Fatal(err)
	}
	for _, d := range absent {
		delete(files, "blobs/sha256/"+d.Encoded())
	}
	return files
}

// DockerArchive is the image as docker save writes it, layers uncompressed, with more
// tags of it.
func (img *Image) DockerArchive(t testing.TB, more ...string) []byte {
	t.Helper()
	m := img.Manifests[0]
	files := map[string][]byte{"config.json": img.Blobs[m.Config.Digest]}
	var names []string
	for i, l := range m.Layers {
		b := img.Blobs[l.Digest]
		if strings.HasSuffix(l.MediaType, "gzip") {
			b = unpacked(t, b)
		}
		names = append(names, fmt.Sprintf("%d/layer.tar", i))
		files[names[i]] = b
	}
	tags := more
	if img.Ref != "" {
		tags = append([]string{img.Ref}, more...)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	files["manifest.json"] = manifest
	return tarOf(t, files)
}

// zstdOf compresses an archive as `docker save | zstd` does.
func zstdOf(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// lz4Of compresses an archive as `docker save | lz4` does.
func lz4Of(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := lz4.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func unpacked(t testing.TB, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
