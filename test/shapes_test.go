package test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// smallConfig makes the config of img one of exactly n bytes.
func (img *image) smallConfig(t *testing.T, n int) {
	t.Helper()
	var c ocispec.Image
	var m ocispec.Manifest
	if err := errors.Join(json.Unmarshal(img.config, &c), json.Unmarshal(img.manifest, &m)); err != nil {
		t.Fatal(err)
	}
	c.Config = ocispec.ImageConfig{Cmd: []string{"/say"}}
	c.Author = "-"
	pad := n - len(marshal(t, c))
	if pad < 0 {
		t.Fatalf("the config has %d bytes more than %d", -pad, n)
	}
	c.Author += strings.Repeat("-", pad)
	img.config = marshal(t, c)
	m.Config = describe(m.Config.MediaType, img.config)
	img.manifest = marshal(t, m)
}

// TestSmallBlobsTravel: a config of 245 bytes as crane writes it, an index of one
// manifest, and a last chunk of a few bytes reach every host, and no peer is blamed for
// them. A zstd frame of less than 256 bytes is not like the others.
func TestSmallBlobsTravel(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a := n.hosts[0]

	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	// says is an image of one layer, with the config of crane append and crane mutate.
	says := func(text string, more ...[]byte) *image {
		layer := tarOf(t, map[string][]byte{"bin/sh": shell, "say": []byte("#!/bin/sh\necho " + text + "\n")})
		return packImage(t, "docker.io/library/"+text+":v1", false, append([][]byte{layer}, more...)...)
	}
	small := says("small")
	small.smallConfig(t, 245)

	// The last chunk of this layer has 200 bytes that shrink.
	tail := tarOf(t, map[string][]byte{"data/random": noise(1, 200<<10)})
	edge := says("edge", append(tail, make([]byte, 256<<10+200-len(tail))...))

	indexed := says("indexed")
	index := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{describe(ocispec.MediaTypeImageManifest, indexed.manifest)}})
	if len(index) > 255 {
		t.Fatalf("the index has %d bytes", len(index))
	}
	layout := indexed.ociLayout(t)
	layout["blobs/sha256/"+digest.FromBytes(index).Encoded()] = index
	top := describe(ocispec.MediaTypeImageIndex, index)
	top.Annotations = map[string]string{images.AnnotationImageName: indexed.ref}
	layout["index.json"] = marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})

	for name, file := range map[string]string{
		"small": small.ociArchive(t, n.dir), "edge": edge.ociArchive(t, n.dir),
		"indexed": writeFile(t, n.dir, "indexed-*.tar", tarOf(t, layout)),
	} {
		if out := a.run("announce", "--from", file); !strings.Contains(out, "is ready on 3 of 3 nodes") {
			t.Errorf("%s: printed:\n%s", name, out)
		}
	}
	for _, h := range n.hosts {
		for ref, want := range map[string]string{small.ref: "small", edge.ref: "edge", indexed.ref: "indexed"} {
			if got := h.runContainer(ref); got != want {
				t.Errorf("a container from %s on %s prints %q", ref, h.name, got)
			}
		}
		if got := h.metric("seeder_chunk_verification_failures_total"); got != 0 {
			t.Errorf("%s blames a peer for %v chunks", h.name, got)
		}
	}
}
