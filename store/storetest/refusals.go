package storetest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bzip2Archive is a docker-archive of one image, bzip2:v1, by bzip2, for which Go has
// no writer.
const bzip2Archive = "" +
	"QlpoOTFBWSZTWcvAWm0AAR/fhM2QUAV/8AgEHBv/9996AAEICDABOMxhqITxT0mmmEbTUyNGgAwmmTR6g1Mgaoep6jQANBkA0AAGCqJU8oPU9E" +
	"xNHqaYgABpkNBoejT6/18mTZREOm2kN0RDEu4rCS0WXV3YSo3iISF/G5UylUUMPvb9eeiaobMjNw17VXdRMk05Mx86Hw3DHBGImEMEkLO/xpWQ" +
	"yYATlcT6e2TxgtdtEl9dUm3Vn5ZnAFOb1gR7G9cjWGe1jrgCV6jYE5LA3lAyaZPWJCZaRzKJQAdU1R1lkUQ/0NI3GUB73M5ab5SCNU2rhcqKqP" +
	"TIvo1RnMssacEb5382yNQu+iWiGBuR8Vpaz+aA/gdKZ/0F5GKJMDDF/mAWBwLhJjMlB5XUkIwzYOe9qKIzCHQA9CUArzsiJWAKsTAMlV09deAs" +
	"iB/i7kinChIZeAtNoA=="

// bzip2d imports what bzip2 has compressed.
func bzip2d(s *suite) {
	b, err := base64.StdEncoding.DecodeString(bzip2Archive)
	if err != nil {
		s.Fatal(err)
	}
	const ref = "docker.io/library/bzip2:v1"
	s.imports(b, "", ref)
	target, err := s.c.Images.Resolve(s.ctx, ref)
	if err != nil {
		s.Fatal(err)
	}
	s.ready(ref, target.Digest)
}

// refusal is an archive that is refused.
type refusal struct {
	name    string
	archive []byte
	ref     string
	want    []string // texts in the error
}

// notTar are files that are no tar files.
func (p *producer) notTar(whole []byte) []refusal {
	utf16 := []byte{0xff, 0xfe}
	for _, b := range whole[:4096] {
		utf16 = append(utf16, b, 0)
	}
	return []refusal{
		{"xz", append([]byte("\xfd7zXZ\x00"), whole...), "", []string{"compressed with xz: xz -dc FILE | seeder announce --from -"}},
		{"zip", append([]byte("PK\x03\x04"), whole...), "", []string{"zip file: unzip -p FILE | seeder announce --from -"}},
		{"UTF-16", utf16, "", []string{"UTF-16", "docker save -o"}},
		{"HTML", []byte("\n<!DOCTYPE html><html>404 Not Found</html>\n"), "", []string{"an HTML page"}},
		{"LFS pointer", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"), "", []string{"a pointer of Git LFS", "git lfs pull"}},
		{"compressed twice", packed(p.t, packed(p.t, whole)), "", []string{"compressed twice, gzip within gzip"}},
		{"zstd in lz4", lz4Of(p.t, zstdOf(p.t, whole)), "", []string{"compressed twice, zstd within lz4: lz4 -dc FILE"}},
		{"HTML in gzip", packed(p.t, []byte("<html>no</html>")), "", []string{"an HTML page"}},
		{"JSON", []byte(`{"schemaVersion":2}`), "", []string{"a JSON document"}},
		{"text", bytes.Repeat([]byte("not a tar file "), 100), "", []string{"it is not a tar file at all"}},
	}
}

// otherTars are tar files of something else.
func (p *producer) otherTars() []refusal {
	img := p.image()
	manifest := img.Blobs[img.Target.Digest]
	nested := map[string][]byte{}
	for name, b := range OCIFiles(p.t, map[string]*Image{"docker.io/library/x:v1": img}) {
		nested["all_images/"+name] = b
	}
	return []refusal{
		{"docker export", tarFiles(p.t, file{name: ".dockerenv"}, file{name: "bin/"}, file{name: "etc/mtab", to: "/proc/mounts"}), "", []string{"a root file system", "docker save"}},
		{"crane export", tarFiles(p.t, file{name: "bin/"}, file{name: "bin/sh", data: []byte("x")}), "", []string{"a root file system", "docker save"}},
		{"dir: of skopeo", tarFiles(p.t, file{name: "./manifest.json", data: manifest}, file{name: "version", data: []byte("Directory Transport Version: 1.1\n")}), "", []string{"the format dir: of skopeo", "docker-archive:"}},
		{"in its parent directory", tarOf(p.t, nested), "", []string{`in its directory "all_images"`, "tar -C all_images -c . | seeder announce --from -"}},
		{"a chart", tarFiles(p.t, file{name: "mychart/Chart.yaml", data: []byte("name: mychart\n")}), "", []string{"a Helm chart (mychart/Chart.yaml)"}},
		{"files", tarFiles(p.t, file{name: "readme", data: []byte("hello\n")}), "", []string{"neither a manifest.json nor an oci-layout"}},
		{"another manifest.json", tarFiles(p.t, file{name: "manifest.json", data: []byte("[1]")}), "", []string{"its manifest.json or oci-layout is not what"}},
	}
}

// noImages are OCI layouts in which there is no image for containerd.
func (p *producer) noImages() []refusal {
	one := func(name, ref string, want []string, make func(*Image) ocispec.Descriptor) refusal {
		img := p.image()
		d := make(img)
		return refusal{name, p.layout(img.Blobs, []ocispec.Descriptor{top(d, nameKey, "docker.io/library/x:v1")}), ref, want}
	}
	chart := func(img *Image) ocispec.Descriptor {
		return img.Artifact(p.t, "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart", nil)
	}
	typed := func(mediaType string) func(*Image) ocispec.Descriptor {
		return func(img *Image) ocispec.Descriptor { return img.add(mediaType, []byte(`{"schemaVersion":1}`)) }
	}
	return []refusal{
		one("Helm chart", "", []string{"no container image in it, only docker.io/library/x:v1, a Helm chart (config application/vnd.cncf.helm.config.v1+json)"}, chart),
		one("Helm chart with a name", "docker.io/library/mine:v1", []string{"no container image in it, only docker.io/library/x:v1, a Helm chart"}, chart),
		one("schema 1", "", []string{"Docker's schema 1"}, typed("application/vnd.docker.distribution.manifest.v1+prettyjws")),
		one("draft artifact", "", []string{"an artifact (application/vnd.oci.artifact.manifest.v1+json)"}, typed("application/vnd.oci.artifact.manifest.v1+json")),
		one("empty config", "", []string{"an artifact (config application/vnd.oci.empty.v1+json)"}, func(img *Image) ocispec.Descriptor {
			return img.Artifact(p.t, "application/vnd.oci.empty.v1+json", "application/octet-stream", "x", nil)
		}),
	}
}

// badNames are archives whose names say nothing, or something else.
func (p *producer) badNames() []refusal {
	named := func(name, ref string, want ...string) refusal {
		img := p.image()
		return refusal{name, p.layout(img.Blobs, []ocispec.Descriptor{top(img.Target, nameKey, name)}), ref, want}
	}
	tagged := func(tag string, want ...string) refusal {
		img := p.image()
		img.Ref = tag
		return refusal{"docker-archive of " + tag, img.DockerArchive(p.t), "", want}
	}
	other := "docker.io/library/app@sha256:" + strings.Repeat("0", 64)
	return []refusal{
		named("docker.io/library/MyApp:v1", "", "the repository has capitals", "name it: REF --from FILE"),
		named("docker.io/library/long:"+strings.Repeat("a", 129), "", "its tag has 129 characters, at most 128"),
		tagged("MyApp:v1", `the archive calls its image "MyApp:v1"`, "the repository has capitals", "name it: REF --from FILE"),
		tagged("app:"+strings.Repeat("a", 129), "its tag has 129 characters, at most 128", "name it: REF --from FILE"),
		{"docker-archive of two invalid tags", p.dockerOf([]string{"MyApp:v1"}, []string{"Other:v1"}), "", []string{
			`"MyApp:v1", which is not an image reference: the repository has capitals; "Other:v1"`, "make an archive of one", "name it: REF --from FILE"}},
		named("docker://docker.io/library/app:v1", "", "it has a scheme"),
		named(" docker.io/library/app:v1", "", "it has spaces around it"),
		named(other, "", "it names the digest sha256:0000", "but the image is sha256:", "name it: REF --from FILE"),
		named("docker.io/library/app:v1", other, "it names the digest sha256:0000", "but the image is sha256:"),
	}
}

// foreignAbsent is an image whose foreign layer is not in the archive.
func (p *producer) foreignAbsent() refusal {
	img := p.image()
	var m ocispec.Manifest
	if err := json.Unmarshal(img.Blobs[img.Target.Digest], &m); err != nil {
		p.t.Fatal(err)
	}
	delete(img.Blobs, img.Target.Digest)
	delete(img.Blobs, m.Layers[0].Digest)
	m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	d := img.json(p.t, ocispec.MediaTypeImageManifest, m)
	return refusal{"a foreign layer that is left out", p.layout(img.Blobs, []ocispec.Descriptor{top(d, nameKey, "docker.io/library/foreign:v1")}), "",
		[]string{"leaves out the foreign layer " + m.Layers[0].Digest.String()}}
}

// refusals: what is not an image archive is refused with what it is and what to do, in
// words of the field, and leaves nothing.
func refusals(s *suite) {
	p := &producer{t: s.T, seed: 500}
	img := p.image()
	cases := slices.Concat(p.notTar(p.layout(img.Blobs, []ocispec.Descriptor{img.Target})), p.otherTars(), p.noImages(), p.badNames())
	if s.Unpacks { // else nobody needs the layer
		cases = append(cases, p.foreignAbsent())
	}
	before := s.targets()
	for _, tc := range cases {
		got, err := importInto(s.ctx, s.c, bytes.NewReader(tc.archive), tc.ref)
		if err == nil {
			s.Errorf("%s: imported as %v", tc.name, got.Names)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				s.Errorf("%s: %v, want %q", tc.name, err, want)
			}
		}
		for _, raw := range []string{"archive/tar", "json:", "struct {", "[]struct", "rpc error", "unexpected EOF", "(file does not exist)"} {
			if strings.Contains(err.Error(), raw) {
				s.Errorf("%s: the text of a library is shown: %v", tc.name, err)
			}
		}
	}
	if after := s.targets(); !maps.Equal(before, after) {
		s.Errorf("left names: %v, before %v", after, before)
	}
	s.noLeases()
}

// targets are all image records.
func (s *suite) targets() map[string]digest.Digest {
	s.Helper()
	list, err := s.cl.ImageService().List(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	out := map[string]digest.Digest{}
	for _, i := range list {
		out[i.Name] = i.Target.Digest
	}
	return out
}

// singleManifest: a target that is a manifest is taken, also where its config names
// another platform than this host's or none, and nobody else is kept from it then.
func singleManifest(s *suite) {
	for name, platform := range map[string]*ocispec.Platform{
		"other": {OS: "linux", Architecture: strings.TrimPrefix(other(s.c), "linux/")}, "wasm": {OS: "wasip1", Architecture: "wasm"}, "none": {},
	} {
		ref := "docker.io/library/storetest-single-" + name + ":v1"
		img := &Image{Ref: ref, Blobs: map[digest.Digest][]byte{}}
		img.Target = img.manifest(s, *platform, 600).Descriptor
		s.imports(img.OCIArchive(s), "", ref)
		s.ready(ref, img.Target.Digest)
		blobs, err := s.c.Content.Walk(s.ctx, img.Target)
		if err != nil {
			s.Fatal(err)
		}
		for _, b := range blobs {
			if !s.c.Conn.HoldsAll() && name != "none" && len(b.For) > 0 {
				s.Errorf("%s: blob %s is for %v alone", name, b.Digest, b.For)
			}
		}
		s.remove(ref)
	}
}
