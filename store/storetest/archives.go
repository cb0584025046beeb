package storetest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/store"
	"seeder/store/archive"
)

func archives(s *suite) {
	const ref = "docker.io/library/storetest-archives:latest"
	img := NewImage(s, ref, 1)
	s.imports(img.OCIArchive(s), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(packed(s, img.OCIArchive(s)), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(zstdOf(s, img.OCIArchive(s)), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(img.DockerArchive(s), "", ref)
	if target, err := s.c.Images.Resolve(s.ctx, ref); err != nil {
		s.Error(err)
	} else {
		s.ready(ref, target.Digest)
	}
	s.remove(ref)
	// An archive without a name takes the one that it is given.
	img.Ref = ""
	s.imports(img.OCIArchive(s), ref, ref)
	s.ready(ref, img.Target.Digest)
}

func badArchives(s *suite) {
	const ref = "docker.io/library/storetest-bad:latest"
	img := NewImage(s, ref, 2)
	whole := img.OCIArchive(s)
	unnamed := NewImage(s, "", 2)
	for _, tc := range []struct {
		name    string
		archive []byte
		ref     string
		want    string
	}{
		{"nothing", nil, "", "docker-archive or OCI-layout"},
		{"noise", bytes.Repeat([]byte{7, 1, 200}, 5000), "", "docker-archive or OCI-layout"},
		{"no image in it", tarOf(s, map[string][]byte{"a": []byte("b")}), "", "docker-archive or OCI-layout"},
		{"cut off", whole[:len(whole)/2], "", ""},
		{"layer missing", img.OCIArchive(s, img.Manifests[0].Layers[1].Digest), "", img.Manifests[0].Layers[1].Digest.String()},
		{"cut off in gzip", packed(s, whole)[:len(packed(s, whole))/2], "", "it is cut off"},
		{"cut off in zstd", zstdOf(s, whole)[:len(zstdOf(s, whole))/2], "", "it is cut off"},
		{"two without names", OCIArchiveOf(s, map[string]*Image{"": img, "\\": NewImage(s, "", 3)}), "", "2 images and no names"},
		{"none of that name", OCIArchiveOf(s, map[string]*Image{"": img, "\\": NewImage(s, "", 3)}), ref, img.Target.Digest.String() + ", which has no name"},
		{"no name", unnamed.OCIArchive(s), "", "name it: REF --from FILE"},
	} {
		s.Collect(s.T) // what the one before left may complete this one
		got, err := importInto(s.ctx, s.c, bytes.NewReader(tc.archive), tc.ref)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			s.Errorf("%s: %v %v, want %q", tc.name, got.Names, err, tc.want)
		}
		if got := s.names(img.Target.Digest); len(got) > 0 {
			s.Errorf("%s: left the names %v", tc.name, got)
		}
	}
	broken := errors.New("the client went away")
	if _, err := importInto(s.ctx, s.c, &breaks{whole[:len(whole)/2], broken}, ""); !errors.Is(err, broken) || errors.Is(err, archive.ErrNotArchive) {
		s.Errorf("broken connection: %v", err)
	}
	s.Collect(s.T)
	for d := range img.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is left behind", d)
		}
	}
	s.noLeases()
}

// absentParts: an index whose other platforms and attestations are not in the archive,
// as docker save and BuildKit leave them out, is an image like any other.
func absentParts(s *suite) {
	const ref = "docker.io/library/storetest-absent:latest"
	img := NewIndex(s, ref, 4, s.c.Conn.Platform(), "linux/s390x")
	keep := []digest.Digest{img.Target.Digest, img.Manifests[0].Descriptor.Digest, img.Manifests[0].Config.Digest}
	for _, l := range img.Manifests[0].Layers {
		keep = append(keep, l.Digest)
	}
	var absent, half []digest.Digest
	for d := range img.Blobs {
		if !slices.Contains(keep, d) {
			absent = append(absent, d)
		}
	}
	for _, l := range img.Manifests[1].Layers { // its manifest is there
		half = append(half, l.Digest)
	}
	for _, without := range [][]digest.Digest{nil, absent, half} {
		s.imports(img.OCIArchive(s, without...), "", ref)
		s.ready(ref, img.Target.Digest)
		s.remove(ref)
		s.Collect(s.T)
	}
	_, err := importInto(s.ctx, s.c, bytes.NewReader(img.OCIArchive(s, img.Manifests[0].Layers[0].Digest)), "")
	if err == nil || !strings.Contains(err.Error(), "layer "+img.Manifests[0].Layers[0].Digest.String()) {
		s.Errorf("without a layer of this platform: %v", err)
	}
	s.noLeases()
}

// hostileArchives are made to harm. Each is refused with the reason, and leaves
// neither names nor blobs, nor unfinished ones.
func hostileArchives(s *suite) {
	img := NewImage(s, "docker.io/library/storetest-hostile:latest", 3)
	files := func(change func(map[string][]byte)) []byte {
		f := OCIFiles(s, map[string]*Image{img.Ref: img})
		change(f)
		return tarOf(s, f)
	}
	layer := "blobs/sha256/" + img.Manifests[0].Layers[0].Digest.Encoded()
	entry := func(h tar.Header) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&h); err != nil {
			s.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.CopyN(w, zeros{}, h.Size); err != nil {
				s.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			s.Fatal(err)
		}
		return append(buf.Bytes(), img.OCIArchive(s)...)
	}
	manifest := func(m any) []byte {
		b, err := json.Marshal(m)
		if err != nil {
			s.Fatal(err)
		}
		return tarOf(s, map[string][]byte{"manifest.json": b, "config.json": img.Blobs[img.Manifests[0].Config.Digest]})
	}
	many := bytes.Buffer{}
	w := tar.NewWriter(&many)
	for i := range 100_002 {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint("d", i), Typeflag: tar.TypeDir}); err != nil {
			s.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		s.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"up and out", files(func(f map[string][]byte) { f["../../etc/passwd"] = []byte("x") }), `entry "../../etc/passwd" leads out of the archive`},
		{"absolute", files(func(f map[string][]byte) { f["/etc/passwd"] = []byte("x") }), `entry "/etc/passwd" leads out`},
		{"a link out", entry(tar.Header{Name: "a/layer.tar", Linkname: "../../../etc/shadow", Typeflag: tar.TypeSymlink}), `links to "../../../etc/shadow", out of the archive`},
		{"an absolute link", entry(tar.Header{Name: "layer.tar", Linkname: "/etc/shadow", Typeflag: tar.TypeSymlink}), `links to "/etc/shadow"`},
		{"a device", entry(tar.Header{Name: "layer.tar", Typeflag: tar.TypeChar}), "want files, directories and links"},
		{"a name without end", entry(tar.Header{Name: strings.Repeat("n", 5000), Typeflag: tar.TypeReg}), "an entry's name has 5000 bytes"},
		{"a header without end", extended(entry(tar.Header{Name: "x", Size: 2 << 20})), "oversized header"},
		{"an index without end", entry(tar.Header{Name: "index.json", Size: 9 << 20}), "index.json has 9437184 bytes"},
		{"entries without end", many.Bytes(), "more than 100000 entries"},
		{"other bytes", files(func(f map[string][]byte) { f[layer] = []byte("not that layer") }), "what it has as " + img.Manifests[0].Layers[0].Digest.String() + " has the digest sha256:"},
		{"a layer that is not there", manifest([]map[string]any{{"Config": "config.json", "Layers": []string{"gone/layer.tar"}}}), `layer "gone/layer.tar" not found`},
		{"no config", manifest([]map[string]any{{"Config": "../../etc/passwd"}}), `image config "../../etc/passwd" not found`},
		{"a manifest that is a list of numbers", manifest([]int{1, 2}), "manifest.json"},
		{"a bad name", files(func(f map[string][]byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte("docker.io/library/storetest-hostile:latest"), []byte("\\u001b[2J/../x"), 1)
		}), `the archive calls its image "\x1b[2J/../x", which is not an image reference: the form is NAME[:TAG]`},
	} {
		s.Collect(s.T)
		got, err := importInto(s.ctx, s.c, bytes.NewReader(tc.archive), "")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			s.Errorf("%s: %v %v, want %q", tc.name, got.Names, err, tc.want)
		}
		s.Collect(s.T)
		for d := range img.Blobs {
			if s.here(d) {
				s.Errorf("%s: blob %s is left behind", tc.name, d)
			}
		}
		unfinished, err := s.cl.ContentStore().ListStatuses(s.ctx)
		if err != nil || len(unfinished) > 0 {
			s.Errorf("%s: unfinished blobs %v %v", tc.name, unfinished, err)
		}
	}
	if got := s.names(img.Target.Digest); len(got) > 0 {
		s.Errorf("left the names %v", got)
	}
	s.noLeases()
	// Cut off anywhere, and whole once more: what was left unfinished does no harm.
	whole := img.OCIArchive(s)
	for i := range 8 {
		if _, err := importInto(s.ctx, s.c, bytes.NewReader(whole[:len(whole)*(i+1)/9]), ""); err == nil {
			s.Errorf("%d/9 of an archive is one", i+1)
		}
	}
	s.imports(whole, "", img.Ref)
	s.ready(img.Ref, img.Target.Digest)
	// A full disk ends it, and says so.
	s.remove(img.Ref)
	s.Collect(s.T)
	full := store.Archives{Containerd: s.c, Room: func(context.Context) error { return errFull{} }}
	if _, err := full.Import(s.ctx, bytes.NewReader(whole), ""); !errors.Is(err, errFull{}) || errors.Is(err, archive.ErrNotArchive) {
		s.Errorf("a full disk: %v", err)
	}
}

// extended makes the first entry of a tar file the extended header of the next.
func extended(b []byte) []byte {
	b[156] = 'x'
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// errFull is what a full disk says.
type errFull struct{}

func (errFull) Error() string   { return "the disk lacks 5 bytes" }
func (errFull) Waiting() string { return "the disk lacks 5 bytes" }

// zeros is a file without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// breaks is a reader that fails after some bytes.
type breaks struct {
	b   []byte
	err error
}

func (r *breaks) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, r.err
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}
