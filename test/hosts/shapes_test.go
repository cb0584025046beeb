package hosts

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

	"seeder/test/harness"
)

// smallConfig makes the config of img one of exactly n bytes.
func smallConfig(img *harness.Image, t *testing.T, n int) {
	t.Helper()
	var c ocispec.Image
	var m ocispec.Manifest
	if err := errors.Join(json.Unmarshal(img.Config, &c), json.Unmarshal(img.Manifest, &m)); err != nil {
		t.Fatal(err)
	}
	c.Config = ocispec.ImageConfig{Cmd: []string{"/say"}}
	c.Author = "-"
	pad := n - len(harness.Marshal(t, c))
	if pad < 0 {
		t.Fatalf("the config has %d bytes more than %d", -pad, n)
	}
	c.Author += strings.Repeat("-", pad)
	img.Config = harness.Marshal(t, c)
	m.Config = harness.Describe(m.Config.MediaType, img.Config)
	img.Manifest = harness.Marshal(t, m)
}

// TestSmallBlobsTravel: a config of 245 bytes as crane writes it, an index of one
// manifest, and a last chunk of a few bytes reach every host, and no peer is blamed for
// them. A zstd frame of less than 256 bytes is not like the others.
func TestSmallBlobsTravel(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a := n.Hosts[0]

	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	// printing is an image of one layer, with the config of crane append and crane mutate.
	printing := func(text string, more ...[]byte) *harness.Image {
		layer := harness.TarOf(t, map[string][]byte{"bin/sh": shell, "say": []byte("#!/bin/sh\necho " + text + "\n")})
		return harness.PackImage(t, "docker.io/library/"+text+":v1", false, append([][]byte{layer}, more...)...)
	}
	small := printing("small")
	smallConfig(small, t, 245)

	// The last chunk of this layer has 200 bytes that shrink.
	tail := harness.TarOf(t, map[string][]byte{"data/random": harness.Noise(1, 200<<10)})
	edge := printing("edge", append(tail, make([]byte, 256<<10+200-len(tail))...))

	indexed := printing("indexed")
	index := harness.Marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{harness.Describe(ocispec.MediaTypeImageManifest, indexed.Manifest)}})
	if len(index) > 255 {
		t.Fatalf("the index has %d bytes", len(index))
	}
	layout := indexed.OCILayout(t)
	layout["blobs/sha256/"+digest.FromBytes(index).Encoded()] = index
	top := harness.Describe(ocispec.MediaTypeImageIndex, index)
	top.Annotations = map[string]string{images.AnnotationImageName: indexed.Ref}
	layout["index.json"] = harness.Marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})

	for name, file := range map[string]string{
		"small": small.OCIArchive(t, n.Dir), "edge": edge.OCIArchive(t, n.Dir),
		"indexed": harness.WriteFile(t, n.Dir, "indexed-*.tar", harness.TarOf(t, layout)),
	} {
		if out := a.Run("announce", "--from", file); !strings.Contains(out, "is ready on 3 of 3 nodes") {
			t.Errorf("%s: printed:\n%s", name, out)
		}
	}
	for _, h := range n.Hosts {
		for ref, want := range map[string]string{small.Ref: "small", edge.Ref: "edge", indexed.Ref: "indexed"} {
			if got := h.RunContainer(ref); got != want {
				t.Errorf("a container from %s on %s prints %q", ref, h.Name, got)
			}
		}
		if got := h.Metric("seeder_chunk_verification_failures_total"); got != 0 {
			t.Errorf("%s blames a peer for %v chunks", h.Name, got)
		}
	}
}

// archiveOf packs blobs as an OCI layout in a tar file; tops are its manifests.
func archiveOf(t *testing.T, dir string, blobs map[digest.Digest][]byte, tops ...ocispec.Descriptor) string {
	t.Helper()
	return harness.WriteFile(t, dir, "layout-*.tar", harness.TarOf(t, layoutOf(t, blobs, tops...)))
}

func layoutOf(t *testing.T, blobs map[digest.Digest][]byte, tops ...ocispec.Descriptor) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": harness.Marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: tops}),
	}
	for d, b := range blobs {
		files["blobs/sha256/"+d.Encoded()] = b
	}
	return files
}

// called is a descriptor with a name in its annotations.
func called(mediaType string, blob []byte, annotations map[string]string) ocispec.Descriptor {
	d := harness.Describe(mediaType, blob)
	d.Annotations = annotations
	return d
}

// forPlatform makes the config of img name another platform.
func forPlatform(img *harness.Image, t *testing.T, os, architecture string) {
	t.Helper()
	var c ocispec.Image
	var m ocispec.Manifest
	if err := errors.Join(json.Unmarshal(img.Config, &c), json.Unmarshal(img.Manifest, &m)); err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = os, architecture
	img.Config = harness.Marshal(t, c)
	m.Config = harness.Describe(m.Config.MediaType, img.Config)
	img.Manifest = harness.Marshal(t, m)
}

// says is an image that prints its name.
func says(t *testing.T, name string) *harness.Image {
	t.Helper()
	return harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/" + name + ":v1", Says: name, Payload: 10_000})
}

// TestMislabelledImage: an image of one manifest whose config names another platform, or
// the platform of WebAssembly, is taken as containerd takes it, and runs on every host.
// In an index it is not, unless --any-platform says so; without it that is exit code 3.
func TestMislabelledImage(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a := n.Hosts[0]
	for name, platform := range map[string][2]string{"mislabelled": {"linux", "arm64"}, "wasmlabel": {"wasip1", "wasm"}} {
		img := says(t, name)
		forPlatform(img, t, platform[0], platform[1])
		out := a.Run("announce", "--from", img.OCIArchive(t, n.Dir))
		if !strings.Contains(out, "is ready on 2 of 2 nodes") {
			t.Errorf("%s: printed:\n%s", name, out)
		}
		for _, h := range n.Hosts {
			if got := h.RunContainer(img.Ref); got != name {
				t.Errorf("a container from %s on %s prints %q", img.Ref, h.Name, got)
			}
		}
	}
	img := says(t, "indexed")
	file := indexedForArm(t, n.Dir, img)
	err := a.Try(nil, "announce", "--from", file)
	if harness.ExitCode(err) != 3 || !strings.Contains(err.Error(), "no node takes it: 2 excluded: the image is for linux/arm64") || !strings.Contains(err.Error(), "--any-platform") {
		t.Errorf("an index for another platform: %v", err)
	}
	if err := a.Try(nil, "wait", "indexed:v1"); harness.ExitCode(err) != 3 {
		t.Errorf("wait: %v", err)
	}
	if out := a.Run("announce", "indexed:v1", "--any-platform"); !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("--any-platform: printed:\n%s", out)
	}
	for _, h := range n.Hosts {
		if got := h.RunContainer(img.Ref); got != "indexed" {
			t.Errorf("a container from %s on %s prints %q", img.Ref, h.Name, got)
		}
	}
}

// indexedForArm is an archive of img alone in an index, mislabelled as for arm64.
func indexedForArm(t *testing.T, dir string, img *harness.Image) string {
	t.Helper()
	forPlatform(img, t, "linux", "arm64")
	m := harness.Describe(ocispec.MediaTypeImageManifest, img.Manifest)
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	index := harness.Marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}})
	blobs := img.Blobs()
	blobs[digest.FromBytes(index)] = index
	return archiveOf(t, dir, blobs, called(ocispec.MediaTypeImageIndex, index, map[string]string{images.AnnotationImageName: img.Ref}))
}

// TestFollowedBuildKeepsAnyPlatform: a build that is imported by hand after --any-platform
// is announced for any platform, too.
func TestFollowedBuildKeepsAnyPlatform(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for range 2 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_IMAGES_FOLLOW=true")
	}
	a := n.Hosts[0]
	a.AwaitMembers(2)
	img := harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/indexed:v1", Says: "first", Payload: 10_000})
	a.Run("announce", "indexed:v1", "--any-platform", "--from", indexedForArm(t, n.Dir, img))
	img = harness.NewImage(t, harness.ImageSpec{Ref: img.Ref, Says: "second", Payload: 10_000})
	a.Ctr("images", "import", "--all-platforms", "--no-unpack", indexedForArm(t, n.Dir, img))
	want := digest.FromBytes(img.Manifest)
	for _, h := range n.Hosts {
		harness.Eventually(t, 30*time.Second, "the second build on "+h.Name, func() error {
			if got := h.Target(img.Ref); got != want {
				return fmt.Errorf("%s stands for %s, want %s", img.Ref, got, want)
			}
			return h.Try(nil, "wait", "indexed:v1")
		})
		if got := h.RunContainer(img.Ref); got != "second" {
			t.Errorf("a container from %s on %s prints %q", img.Ref, h.Name, got)
		}
	}
}

// TestShortNameInContainerd: what ctr images import leaves under a name for which CRI
// does not look is announced under the one for which it does.
func TestShortNameInContainerd(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for _, auto := range []string{"", "local"} { // the second announces by itself
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_IMAGES_AUTO=" + auto)
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(2)
	short := func(h *harness.Host, name string) *harness.Image {
		t.Helper()
		img := says(t, name)
		h.Ctr("images", "import", archiveOf(t, n.Dir, img.Blobs(), called(ocispec.MediaTypeImageManifest, img.Manifest, map[string]string{ocispec.AnnotationRefName: name + ":v1"})))
		if h.Target(name+":v1") == "" {
			t.Fatalf("ctr does not name %s:v1", name)
		}
		return img
	}
	// By itself.
	auto := short(b, "auto")
	a.Run("wait", "auto:v1", "--timeout", "60s")
	for _, h := range n.Hosts {
		if got := h.RunContainer(auto.Ref); got != "auto" {
			t.Errorf("a container from %s on %s prints %q", auto.Ref, h.Name, got)
		}
	}
	// By hand.
	hand := short(a, "video_list_caddy")
	out := a.Run("announce", "video_list_caddy:v1")
	for _, want := range []string{"containerd has it as video_list_caddy:v1, which the kubelet does not look up", "is ready on 2 of 2 nodes"} {
		if !strings.Contains(out, want) {
			t.Errorf("printed %q, want %q", out, want)
		}
	}
	for _, h := range n.Hosts {
		if got := h.RunContainer(hand.Ref); got != "video_list_caddy" {
			t.Errorf("a container from %s on %s prints %q", hand.Ref, h.Name, got)
		}
	}
}

// TestArtifactsAreLeftOut: of an archive with images, a chart and a signature the images
// reach every host, and the others are named. What fails leaves nothing.
func TestArtifactsAreLeftOut(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a := n.Hosts[0]
	one, two := says(t, "haul1"), says(t, "haul2")
	blobs := one.Blobs()
	maps.Copy(blobs, two.Blobs())
	artifact := func(configType, layerType, content string) []byte {
		config, layer := []byte("{}"), []byte(content)
		m := harness.Marshal(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: harness.Describe(configType, config), Layers: []ocispec.Descriptor{harness.Describe(layerType, layer)}})
		for _, b := range [][]byte{config, layer, m} {
			blobs[digest.FromBytes(b)] = b
		}
		return m
	}
	chart := artifact("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart")
	sig := artifact(ocispec.MediaTypeImageConfig, "application/vnd.dev.cosign.simplesigning.v1+json", `{"critical":{}}`)
	name := func(s string) map[string]string { return map[string]string{images.AnnotationImageName: s} }
	tops := []ocispec.Descriptor{
		called(ocispec.MediaTypeImageManifest, one.Manifest, name("index.docker.io/library/haul1:v1")),
		called(ocispec.MediaTypeImageManifest, sig, name("index.docker.io/library/haul1:v1")),
		called(ocispec.MediaTypeImageManifest, two.Manifest, name("index.docker.io/library/haul2:v1")),
		called(ocispec.MediaTypeImageManifest, chart, name("hauler/mychart:0.1.0")),
	}
	// Without a layer of the second nothing is named.
	torn := maps.Clone(blobs)
	delete(torn, digest.FromBytes(two.Layers[1]))
	if err := a.Try(nil, "announce", "--from", archiveOf(t, n.Dir, torn, tops...)); harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "the archive is incomplete: layer") {
		t.Errorf("an archive without a layer: %v", err)
	}
	if names := names(a); len(names) > 0 {
		t.Errorf("a failed import left the names %v", names)
	}
	wantLeases(a)
	// As a directory, too.
	dir := filepath.Join(n.Dir, "layout")
	for file, content := range layoutOf(t, blobs, tops...) {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	out := a.Run("announce", "--from", dir)
	for _, want := range []string{
		"haul1:v1: version 1 is ready on 2 of 2 nodes", "haul2:v1: version 1 is ready on 2 of 2 nodes",
		"docker.io/library/haul1:v1, a signature", "docker.io/hauler/mychart:0.1.0, a Helm chart",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("printed:\n%s\nwant %q", out, want)
		}
	}
	for _, h := range n.Hosts {
		for _, img := range []string{"haul1", "haul2"} {
			if got := h.RunContainer("docker.io/library/" + img + ":v1"); got != img {
				t.Errorf("a container from %s on %s prints %q", img, h.Name, got)
			}
		}
	}
}

// TestPurgeByDigest: of an image that was announced by its digest a purge leaves no
// record and no pin on any host, and says what it freed.
func TestPurgeByDigest(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a := n.Hosts[0]
	img := says(t, "app")
	ref := "docker.io/library/app@" + digest.FromBytes(img.Manifest).String()
	file := archiveOf(t, n.Dir, img.Blobs(), called(ocispec.MediaTypeImageManifest, img.Manifest, map[string]string{images.AnnotationImageName: ref}))
	if out := a.Run("announce", "--from", file); !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("printed:\n%s", out)
	}
	out := a.Run("withdraw", "--purge", ref)
	if !strings.Contains(out, "withdrawn and removed on 2 of 2 nodes") || !strings.Contains(out, "freed") {
		t.Errorf("printed:\n%s", out)
	}
	for _, h := range n.Hosts {
		if names := names(h); len(names) > 0 {
			t.Errorf("%s has the records %v", h.Name, names)
		}
	}
	other := archiveOf(t, n.Dir, img.Blobs(), called(ocispec.MediaTypeImageManifest, img.Manifest, map[string]string{images.AnnotationImageName: "docker.io/library/app@sha256:" + strings.Repeat("0", 64)}))
	if err := a.Try(nil, "announce", "--from", other); harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "but the image is "+digest.FromBytes(img.Manifest).String()) {
		t.Errorf("a name by another digest: %v", err)
	}
	if names := names(a); len(names) > 0 {
		t.Errorf("it left the names %v", names)
	}
}
