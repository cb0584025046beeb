package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	// printing is an image of one layer, with the config of crane append and crane mutate.
	printing := func(text string, more ...[]byte) *image {
		layer := tarOf(t, map[string][]byte{"bin/sh": shell, "say": []byte("#!/bin/sh\necho " + text + "\n")})
		return packImage(t, "docker.io/library/"+text+":v1", false, append([][]byte{layer}, more...)...)
	}
	small := printing("small")
	small.smallConfig(t, 245)

	// The last chunk of this layer has 200 bytes that shrink.
	tail := tarOf(t, map[string][]byte{"data/random": noise(1, 200<<10)})
	edge := printing("edge", append(tail, make([]byte, 256<<10+200-len(tail))...))

	indexed := printing("indexed")
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

// archiveOf packs blobs as an OCI layout in a tar file; tops are its manifests.
func archiveOf(t *testing.T, dir string, blobs map[digest.Digest][]byte, tops ...ocispec.Descriptor) string {
	t.Helper()
	return writeFile(t, dir, "layout-*.tar", tarOf(t, layoutOf(t, blobs, tops...)))
}

func layoutOf(t *testing.T, blobs map[digest.Digest][]byte, tops ...ocispec.Descriptor) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: tops}),
	}
	for d, b := range blobs {
		files["blobs/sha256/"+d.Encoded()] = b
	}
	return files
}

// called is a descriptor with a name in its annotations.
func called(mediaType string, blob []byte, annotations map[string]string) ocispec.Descriptor {
	d := describe(mediaType, blob)
	d.Annotations = annotations
	return d
}

// forPlatform makes the config of img name another platform.
func (img *image) forPlatform(t *testing.T, os, architecture string) {
	t.Helper()
	var c ocispec.Image
	var m ocispec.Manifest
	if err := errors.Join(json.Unmarshal(img.config, &c), json.Unmarshal(img.manifest, &m)); err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = os, architecture
	img.config = marshal(t, c)
	m.Config = describe(m.Config.MediaType, img.config)
	img.manifest = marshal(t, m)
}

// says is an image that prints its name.
func says(t *testing.T, name string) *image {
	t.Helper()
	return newImage(t, imageSpec{ref: "docker.io/library/" + name + ":v1", says: name, payload: 10_000})
}

// TestMislabelledImage: an image of one manifest whose config names another platform, or
// the platform of WebAssembly, is taken as containerd takes it, and runs on every host.
// In an index it is not, unless --any-platform says so; without it that is exit code 3.
func TestMislabelledImage(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a := n.hosts[0]
	for name, platform := range map[string][2]string{"mislabelled": {"linux", "arm64"}, "wasmlabel": {"wasip1", "wasm"}} {
		img := says(t, name)
		img.forPlatform(t, platform[0], platform[1])
		out := a.run("announce", "--from", img.ociArchive(t, n.dir))
		if !strings.Contains(out, "is ready on 2 of 2 nodes") {
			t.Errorf("%s: printed:\n%s", name, out)
		}
		for _, h := range n.hosts {
			if got := h.runContainer(img.ref); got != name {
				t.Errorf("a container from %s on %s prints %q", img.ref, h.name, got)
			}
		}
	}
	img := says(t, "indexed")
	file := indexedForArm(t, n.dir, img)
	err := a.try(nil, "announce", "--from", file)
	if exitCode(err) != 3 || !strings.Contains(err.Error(), "no node takes it: 2 excluded: the image is for linux/arm64") || !strings.Contains(err.Error(), "--any-platform") {
		t.Errorf("an index for another platform: %v", err)
	}
	if err := a.try(nil, "wait", "indexed:v1"); exitCode(err) != 3 {
		t.Errorf("wait: %v", err)
	}
	if out := a.run("announce", "indexed:v1", "--any-platform"); !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("--any-platform: printed:\n%s", out)
	}
	for _, h := range n.hosts {
		if got := h.runContainer(img.ref); got != "indexed" {
			t.Errorf("a container from %s on %s prints %q", img.ref, h.name, got)
		}
	}
}

// indexedForArm is an archive of img alone in an index, mislabelled as for arm64.
func indexedForArm(t *testing.T, dir string, img *image) string {
	t.Helper()
	img.forPlatform(t, "linux", "arm64")
	m := describe(ocispec.MediaTypeImageManifest, img.manifest)
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	index := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}})
	blobs := img.blobs()
	blobs[digest.FromBytes(index)] = index
	return archiveOf(t, dir, blobs, called(ocispec.MediaTypeImageIndex, index, map[string]string{images.AnnotationImageName: img.ref}))
}

// TestFollowedBuildKeepsAnyPlatform: a build that is imported by hand after --any-platform
// is announced for any platform, too.
func TestFollowedBuildKeepsAnyPlatform(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	for range 2 {
		h := n.addHost(newest)
		h.startContainerd()
		h.startSeeder("SEEDER_IMAGES_FOLLOW=true")
	}
	a := n.hosts[0]
	a.awaitMembers(2)
	img := newImage(t, imageSpec{ref: "docker.io/library/indexed:v1", says: "first", payload: 10_000})
	a.run("announce", "indexed:v1", "--any-platform", "--from", indexedForArm(t, n.dir, img))
	img = newImage(t, imageSpec{ref: img.ref, says: "second", payload: 10_000})
	a.ctr("images", "import", "--all-platforms", "--no-unpack", indexedForArm(t, n.dir, img))
	want := digest.FromBytes(img.manifest)
	for _, h := range n.hosts {
		eventually(t, 30*time.Second, "the second build on "+h.name, func() error {
			if got := h.target(img.ref); got != want {
				return fmt.Errorf("%s stands for %s, want %s", img.ref, got, want)
			}
			return h.try(nil, "wait", "indexed:v1")
		})
		if got := h.runContainer(img.ref); got != "second" {
			t.Errorf("a container from %s on %s prints %q", img.ref, h.name, got)
		}
	}
}

// TestShortNameInContainerd: what ctr images import leaves under a name for which CRI
// does not look is announced under the one for which it does.
func TestShortNameInContainerd(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	for _, auto := range []string{"", "local"} { // the second announces by itself
		h := n.addHost(newest)
		h.startContainerd()
		h.startSeeder("SEEDER_IMAGES_AUTO=" + auto)
	}
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(2)
	short := func(h *host, name string) *image {
		t.Helper()
		img := says(t, name)
		h.ctr("images", "import", archiveOf(t, n.dir, img.blobs(), called(ocispec.MediaTypeImageManifest, img.manifest, map[string]string{ocispec.AnnotationRefName: name + ":v1"})))
		if h.target(name+":v1") == "" {
			t.Fatalf("ctr does not name %s:v1", name)
		}
		return img
	}
	// By itself.
	auto := short(b, "auto")
	a.run("wait", "auto:v1", "--timeout", "60s")
	for _, h := range n.hosts {
		if got := h.runContainer(auto.ref); got != "auto" {
			t.Errorf("a container from %s on %s prints %q", auto.ref, h.name, got)
		}
	}
	// By hand.
	hand := short(a, "video_list_caddy")
	out := a.run("announce", "video_list_caddy:v1")
	for _, want := range []string{"containerd has it as video_list_caddy:v1, for which the kubelet does not look", "is ready on 2 of 2 nodes"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed %q, want %q", out, want)
		}
	}
	for _, h := range n.hosts {
		if got := h.runContainer(hand.ref); got != "video_list_caddy" {
			t.Errorf("a container from %s on %s prints %q", hand.ref, h.name, got)
		}
	}
}

// TestArtifactsAreLeftOut: of an archive with images, a chart and a signature the images
// reach every host, and the others are named. What fails leaves nothing.
func TestArtifactsAreLeftOut(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a := n.hosts[0]
	one, two := says(t, "haul1"), says(t, "haul2")
	blobs := one.blobs()
	maps.Copy(blobs, two.blobs())
	artifact := func(configType, layerType, content string) []byte {
		config, layer := []byte("{}"), []byte(content)
		m := marshal(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: describe(configType, config), Layers: []ocispec.Descriptor{describe(layerType, layer)}})
		for _, b := range [][]byte{config, layer, m} {
			blobs[digest.FromBytes(b)] = b
		}
		return m
	}
	chart := artifact("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart")
	sig := artifact(ocispec.MediaTypeImageConfig, "application/vnd.dev.cosign.simplesigning.v1+json", `{"critical":{}}`)
	name := func(s string) map[string]string { return map[string]string{images.AnnotationImageName: s} }
	tops := []ocispec.Descriptor{
		called(ocispec.MediaTypeImageManifest, one.manifest, name("index.docker.io/library/haul1:v1")),
		called(ocispec.MediaTypeImageManifest, sig, name("index.docker.io/library/haul1:v1")),
		called(ocispec.MediaTypeImageManifest, two.manifest, name("index.docker.io/library/haul2:v1")),
		called(ocispec.MediaTypeImageManifest, chart, name("hauler/mychart:0.1.0")),
	}
	// Without a layer of the second nothing is named.
	torn := maps.Clone(blobs)
	delete(torn, digest.FromBytes(two.layers[1]))
	if err := a.try(nil, "announce", "--from", archiveOf(t, n.dir, torn, tops...)); exitCode(err) != 1 || !strings.Contains(err.Error(), "the archive is incomplete: layer") {
		t.Errorf("an archive without a layer: %v", err)
	}
	if names := a.names(); len(names) > 0 {
		t.Errorf("a failed import left the names %v", names)
	}
	a.wantLeases()
	// As a directory, too.
	dir := filepath.Join(n.dir, "layout")
	for file, content := range layoutOf(t, blobs, tops...) {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	out := a.run("announce", "--from", dir)
	for _, want := range []string{
		"haul1:v1: version 1 is ready on 2 of 2 nodes", "haul2:v1: version 1 is ready on 2 of 2 nodes",
		"docker.io/library/haul1:v1, a signature", "docker.io/hauler/mychart:0.1.0, a Helm chart",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("printed:\n%s\nwant %q", out, want)
		}
	}
	for _, h := range n.hosts {
		for _, img := range []string{"haul1", "haul2"} {
			if got := h.runContainer("docker.io/library/" + img + ":v1"); got != img {
				t.Errorf("a container from %s on %s prints %q", img, h.name, got)
			}
		}
	}
}

// TestPurgeByDigest: of an image that was announced by its digest a purge leaves no
// record and no pin on any host, and says what it freed.
func TestPurgeByDigest(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a := n.hosts[0]
	img := says(t, "app")
	ref := "docker.io/library/app@" + digest.FromBytes(img.manifest).String()
	file := archiveOf(t, n.dir, img.blobs(), called(ocispec.MediaTypeImageManifest, img.manifest, map[string]string{images.AnnotationImageName: ref}))
	if out := a.run("announce", "--from", file); !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("printed:\n%s", out)
	}
	out := a.run("withdraw", "--purge", ref)
	if !strings.Contains(out, "withdrawn and removed on 2 of 2 nodes") || !strings.Contains(out, "freed") {
		t.Errorf("printed:\n%s", out)
	}
	for _, h := range n.hosts {
		if names := h.names(); len(names) > 0 {
			t.Errorf("%s has the records %v", h.name, names)
		}
	}
	other := archiveOf(t, n.dir, img.blobs(), called(ocispec.MediaTypeImageManifest, img.manifest, map[string]string{images.AnnotationImageName: "docker.io/library/app@sha256:" + strings.Repeat("0", 64)}))
	if err := a.try(nil, "announce", "--from", other); exitCode(err) != 1 || !strings.Contains(err.Error(), "but the image is "+digest.FromBytes(img.manifest).String()) {
		t.Errorf("a name by another digest: %v", err)
	}
	if names := a.names(); len(names) > 0 {
		t.Errorf("it left the names %v", names)
	}
}
