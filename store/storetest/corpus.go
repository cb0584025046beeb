package storetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Produced is an archive in the shape that a producer of images writes.
type Produced struct {
	Producer string
	Archive  []byte
	Ref      string   // given with it, "" where the archive has the name
	Names    []string // that the import gives
	LeftOut  []string // texts in what is said of the rest, in that order
}

// file is an entry of an archive; a link where to is set.
type file struct {
	name string
	data []byte
	to   string
}

func tarFiles(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}
		switch {
		case f.to != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.to
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func jsonFile(t testing.TB, name string, v any) file {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return file{name: name, data: b}
}

// dockerEntry is an image in manifest.json of docker save.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// producer makes the archives of one image each.
type producer struct {
	t    testing.TB
	seed uint64
}

// image is another image for this host each time.
func (p *producer) image() *Image {
	p.seed++
	return NewImage(p.t, "", 1000+p.seed)
}

// plain are the layers of an image, not compressed, as docker-archives of old have
// them.
func (p *producer) plain(img *Image) (layers [][]byte) {
	for _, l := range img.Manifests[0].Layers {
		b := img.Blobs[l.Digest]
		if strings.HasSuffix(l.MediaType, "gzip") {
			b = unpacked(p.t, b)
		}
		layers = append(layers, b)
	}
	return layers
}

func hexOf(b []byte) string { return digest.FromBytes(b).Encoded() }

// docker20 has a directory for each layer; one that is there twice is a link.
func (p *producer) docker20(ref string) []byte {
	img := p.image()
	config := img.Blobs[img.Manifests[0].Config.Digest]
	entry := dockerEntry{Config: hexOf(config) + ".json", RepoTags: []string{ref}}
	var files []file
	for i, l := range p.plain(img) {
		dir := hexOf([]byte{byte(i), byte(p.seed)})
		entry.Layers = append(entry.Layers, dir+"/layer.tar")
		files = append(files, file{name: dir + "/"}, file{name: dir + "/VERSION", data: []byte("1.0")}, file{name: dir + "/json", data: []byte("{}")},
			file{name: "store" + dir + "/layer.tar", data: l}, file{name: dir + "/layer.tar", to: "../store" + dir + "/layer.tar"})
	}
	files = append(files, file{name: entry.Config, data: config}, jsonFile(p.t, "manifest.json", []dockerEntry{entry}),
		jsonFile(p.t, "repositories", map[string]any{strings.Split(ref, ":")[0]: map[string]string{"v1": "0"}}))
	return tarFiles(p.t, files...)
}

// podman has links from the old names of the layers to the new.
func (p *producer) podman(ref string) []byte {
	img := p.image()
	config := img.Blobs[img.Manifests[0].Config.Digest]
	entry := dockerEntry{Config: hexOf(config) + ".json", RepoTags: []string{ref}}
	var files []file
	for _, l := range p.plain(img) {
		name := hexOf(l) + ".tar"
		entry.Layers = append(entry.Layers, name)
		files = append(files, file{name: name, data: l}, file{name: "v1-" + hexOf(l) + "/layer.tar", to: "../" + name})
	}
	return tarFiles(p.t, append(files, file{name: entry.Config, data: config}, jsonFile(p.t, "manifest.json", []dockerEntry{entry}))...)
}

// tarball is what go-containerregistry writes: crane, ko and kaniko. The config is
// named by its digest, the layers are gzip.
func (p *producer) tarball(configName, layerName func([]byte) string, tags ...string) []byte {
	img := p.image()
	config := img.Blobs[img.Manifests[0].Config.Digest]
	entry := dockerEntry{Config: configName(config), RepoTags: tags}
	files := []file{{name: entry.Config, data: config}}
	for _, l := range p.plain(img) {
		l = packed(p.t, l)
		entry.Layers = append(entry.Layers, layerName(l))
		files = append(files, file{name: layerName(l), data: l})
	}
	return tarFiles(p.t, append(files, jsonFile(p.t, "manifest.json", []dockerEntry{entry}))...)
}

// top is a manifest of index.json.
func top(d ocispec.Descriptor, annotations ...string) ocispec.Descriptor {
	for i := 0; i+1 < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

// layout is an OCI layout of these blobs. The files of more come last.
func (p *producer) layout(blobs map[digest.Digest][]byte, tops []ocispec.Descriptor, more ...file) []byte {
	files := []file{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {name: "blobs/"}, {name: "blobs/sha256/"}}
	for _, d := range slices.SortedFunc(keysOf(blobs), func(a, b digest.Digest) int { return strings.Compare(string(a), string(b)) }) {
		files = append(files, file{name: "blobs/sha256/" + d.Encoded(), data: blobs[d]})
	}
	files = append(files, jsonFile(p.t, "index.json", ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: tops}))
	return tarFiles(p.t, append(files, more...)...)
}

func keysOf[V any](m map[digest.Digest]V) func(func(digest.Digest) bool) {
	return func(yield func(digest.Digest) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

const (
	nameKey = "io.containerd.image.name"
	refKey  = ocispec.AnnotationRefName
)

// docker25 is an OCI layout with the manifest.json of old beside it.
func (p *producer) docker25(ref string) []byte {
	img := p.image()
	m := img.Manifests[0]
	entry := dockerEntry{Config: "blobs/sha256/" + m.Config.Digest.Encoded(), RepoTags: []string{ref}}
	for _, l := range m.Layers {
		entry.Layers = append(entry.Layers, "blobs/sha256/"+l.Digest.Encoded())
	}
	return p.layout(img.Blobs, []ocispec.Descriptor{top(img.Target, nameKey, "docker.io/library/"+ref, refKey, "v1")},
		jsonFile(p.t, "manifest.json", []dockerEntry{entry}), file{name: "repositories", data: []byte("{}")})
}

// buildKit is an index with an attestation.
func (p *producer) buildKit(annotations ...string) []byte {
	p.seed++
	img := NewIndex(p.t, "", 1000+p.seed, platforms.Format(platforms.Normalize(platforms.DefaultSpec())))
	return p.layout(img.Blobs, []ocispec.Descriptor{top(img.Target, annotations...)})
}

// savedByID is what an engine with containerd's store saves of an image by its id, for
// one platform: the attestation is a second manifest, and nothing has a name.
func (p *producer) savedByID() []byte {
	img := p.image()
	att := img.attestation(p.t, img.Target.Digest)
	att.Platform, att.Annotations = nil, map[string]string{"io.containerd.manifest.subject": img.Target.Digest.String()}
	return p.layout(img.Blobs, []ocispec.Descriptor{img.Target, att})
}

// rulesOCI names its layers with a suffix and has no oci-layout.
func (p *producer) rulesOCI(ref string) []byte {
	blob := func(b []byte) string { return "blobs/sha256/" + hexOf(b) }
	return p.tarball(blob, func(b []byte) string { return blob(b) + ".tar.gz" }, ref)
}

// Artifact adds a manifest that is not an image, with its config and one layer.
func (img *Image) Artifact(t testing.TB, configType, layerType, content string, subject *ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return img.json(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.add(configType, []byte("{}")), Layers: []ocispec.Descriptor{img.add(layerType, []byte(content))}, Subject: subject})
}

// hauler keeps images, charts, files and signatures in one layout.
func (p *producer) hauler() Produced {
	one, two := p.image(), p.image()
	for d, b := range two.Blobs {
		one.Blobs[d] = b
	}
	chart := one.Artifact(p.t, "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart", nil)
	script := one.Artifact(p.t, "application/vnd.content.hauler.file.directory.config.v1+json", "application/vnd.content.hauler.file.layer.v1", "#!/bin/sh", nil)
	sig := one.Artifact(p.t, ocispec.MediaTypeImageConfig, "application/vnd.dev.cosign.simplesigning.v1+json", `{"critical":{}}`, nil)
	return Produced{Producer: "hauler: images, a chart, a file, a signature", Names: []string{"docker.io/library/haul1:v1", "docker.io/library/haul2:v1"},
		LeftOut: []string{"docker.io/library/haul1:v1, a signature", "docker.io/hauler/mychart:0.1.0, a Helm chart", "docker.io/hauler/install.sh:latest, a file"},
		Archive: p.layout(one.Blobs, []ocispec.Descriptor{
			top(one.Target, nameKey, "index.docker.io/library/haul1:v1", refKey, "library/haul1:v1", "kind", "dev.cosignproject.cosign/image"),
			top(sig, nameKey, "index.docker.io/library/haul1:v1", refKey, "library/haul1:v1", "kind", "dev.cosignproject.cosign/sigs"),
			top(two.Target, nameKey, "index.docker.io/library/haul2:v1", refKey, "library/haul2:v1"),
			top(chart, nameKey, "hauler/mychart:0.1.0"), top(script, nameKey, "hauler/install.sh:latest"),
		})}
}

// signed is an image with a signature that says whose it is.
func (p *producer) signed() Produced {
	img := p.image()
	sig := img.Artifact(p.t, "application/vnd.oci.empty.v1+json", "application/vnd.dev.cosign.simplesigning.v1+json", `{"critical":{}}`, &img.Target)
	tag := "docker.io/library/signed:sha256-" + img.Target.Digest.Encoded() + ".sig"
	return Produced{Producer: "cosign save", Names: []string{"docker.io/library/signed:v1"}, LeftOut: []string{tag + ", a signature"},
		Archive: p.layout(img.Blobs, []ocispec.Descriptor{top(img.Target, nameKey, "docker.io/library/signed:v1"), top(sig, nameKey, tag)})}
}

// Corpus is an archive of each producer's shape.
func Corpus(t testing.TB) []Produced {
	t.Helper()
	p := &producer{t: t}
	sha := func(b []byte) string { return "sha256:" + hexOf(b) }
	tgz := func(b []byte) string { return hexOf(b) + ".tar.gz" }
	fixed := func(name string) func([]byte) string { return func([]byte) string { return name } }
	blobs := p.image()
	unnamed, tagged, short, ctr := p.image(), p.image(), p.image(), p.image()
	lib := func(name string) []string { return []string{"docker.io/library/" + name} }
	out := []Produced{
		{Producer: "docker 20 save", Archive: p.docker20("docker20:v1"), Names: lib("docker20:v1")},
		{Producer: "docker 28 save", Archive: p.docker25("docker28:v1"), Names: lib("docker28:v1")},
		{Producer: "docker 29 save, containerd's store", Archive: p.buildKit(nameKey, "docker.io/library/docker29:v1", refKey, "v1"), Names: lib("docker29:v1")},
		{Producer: "docker 29 save --platform, by id", Archive: p.savedByID(), Ref: "docker.io/library/byid:v1", Names: lib("byid:v1")},
		{Producer: "podman save", Archive: p.podman("localhost/podman:v1"), Names: []string{"localhost/podman:v1"}},
		{Producer: "buildah push oci-archive, with a name", Archive: p.layout(short.Blobs, []ocispec.Descriptor{top(short.Target, refKey, "buildah:v1")}), Names: lib("buildah:v1")},
		{Producer: "skopeo copy oci-archive, with a tag", Archive: p.layout(tagged.Blobs, []ocispec.Descriptor{top(tagged.Target, refKey, "v1")}), Ref: "docker.io/library/skopeo:v1", Names: lib("skopeo:v1")},
		{Producer: "umoci, without a name", Archive: p.layout(unnamed.Blobs, []ocispec.Descriptor{unnamed.Target}), Ref: "docker.io/library/umoci:v1", Names: lib("umoci:v1")},
		{Producer: "BuildKit OCI exporter", Archive: p.buildKit(nameKey, "docker.io/library/buildkit:v1", refKey, "v1", "org.opencontainers.image.created", "2026-01-01T00:00:00Z"), Names: lib("buildkit:v1")},
		{Producer: "ctr and nerdctl export", Archive: p.layout(ctr.Blobs, []ocispec.Descriptor{top(ctr.Target, nameKey, "docker.io/library/ctr:v1", refKey, "v1")}), Names: lib("ctr:v1")},
		{Producer: "crane pull", Archive: p.tarball(sha, tgz, "crane:v1"), Names: lib("crane:v1")},
		{Producer: "ko build --tarball", Archive: p.tarball(sha, tgz, "ko.local/app:v1"), Names: []string{"ko.local/app:v1"}},
		{Producer: "kaniko --tar-path", Archive: p.tarball(sha, tgz, "registry.example.com/kaniko:v1"), Names: []string{"registry.example.com/kaniko:v1"}},
		{Producer: "jib buildTar", Archive: p.tarball(fixed("config.json"), tgz, "jib:v1"), Names: lib("jib:v1")},
		{Producer: "nix dockerTools", Archive: p.tarball(func(b []byte) string { return hexOf(b) + ".json" }, func(b []byte) string { return hexOf(b) + "/layer.tar" }, "nix:v1"), Names: lib("nix:v1")},
		{Producer: "bazel rules_oci", Archive: p.rulesOCI("rulesoci:v1"), Names: lib("rulesoci:v1")},
		{Producer: "blobs named sha256:HEX", Archive: p.tarball(func(b []byte) string { return "blobs/sha256/" + sha(b) }, func(b []byte) string { return "blobs/sha256/" + sha(b) }, "prefixed:v1"), Names: lib("prefixed:v1")},
		p.hauler(), p.signed(),
	}
	for form, pack := range map[string]func(testing.TB, []byte) []byte{"gzip": packed, "zstd": zstdOf, "lz4": lz4Of} {
		out = append(out, Produced{Producer: "docker 28 save | " + form, Archive: pack(t, p.docker25(form+":v1")), Names: lib(form + ":v1")})
	}
	named := top(blobs.Target, nameKey, "docker.io/library/digested@"+blobs.Target.Digest.String())
	return append(out, Produced{Producer: "hauler, by digest", Archive: p.layout(blobs.Blobs, []ocispec.Descriptor{named}), Names: lib("digested@" + blobs.Target.Digest.String())})
}

// corpus imports an archive of each producer's shape.
func corpus(s *suite) {
	for _, c := range Corpus(s.T) {
		got, err := importInto(s.ctx, s.c, bytes.NewReader(c.Archive), c.Ref)
		if err != nil || !slices.Equal(got.Names, c.Names) || !inOrder(got.LeftOut, c.LeftOut) {
			s.Errorf("%s: %v, left out %q, %v; want %v, %q", c.Producer, got.Names, got.LeftOut, err, c.Names, c.LeftOut)
		}
		for _, name := range got.Names {
			target, err := s.c.Images.Resolve(s.ctx, name)
			if err != nil {
				s.Errorf("%s: %v", c.Producer, err)
				continue
			}
			if ok, reason, err := s.c.Checks.Check(s.ctx, name, target.Digest); !ok || err != nil {
				s.Errorf("%s: %s is not ready: %q %v", c.Producer, name, reason, err)
			}
			s.remove(name)
			if left := s.names(target.Digest); len(left) > 0 {
				s.Errorf("%s: left %v", c.Producer, left)
			}
		}
	}
	s.noLeases()
}

// inOrder reports whether each text begins the line at its place.
func inOrder(lines, texts []string) bool {
	if len(lines) != len(texts) {
		return false
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, texts[i]) {
			return false
		}
	}
	return true
}
