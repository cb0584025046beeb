package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/delta"
)

// written is a delta archive of one delta and one manifest, and the base that it needs.
type written struct {
	contents              Contents
	base, layer, manifest []byte
	delta                 []byte
}

func piece(p []byte) Piece { return Piece{Digest: digest.FromBytes(p), Size: int64(len(p))} }

func writeDelta(t testing.TB) written {
	t.Helper()
	base := bytes.Repeat([]byte("a layer of some bytes, "), 2000)
	layer := append([]byte("and a change, "), base...)
	var d bytes.Buffer
	b, l := piece(base), piece(layer)
	if _, _, err := delta.Encode(t.Context(), &d, delta.Bytes, delta.Blob{ReaderAt: bytes.NewReader(base), Digest: b.Digest, Bytes: b.Size},
		delta.Blob{ReaderAt: bytes.NewReader(layer), Digest: l.Digest, Bytes: l.Size}, 0); err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size}}})
	if err != nil {
		t.Fatal(err)
	}
	m := piece(manifest)
	return written{
		contents: Contents{
			Image:  Called{Reference: "docker.io/library/app:v2", MediaType: ocispec.MediaTypeImageManifest, Digest: m.Digest, Size: m.Size},
			Since:  Called{Reference: "docker.io/library/app:v1", Digest: digest.FromString("v1")},
			Needs:  []Piece{b},
			Blobs:  []Piece{m},
			Deltas: []Delta{{Piece: piece(d.Bytes()), Kind: "bytes", Base: b.Digest, Target: l}},
		},
		base: base, layer: layer, manifest: manifest, delta: d.Bytes(),
	}
}

// pack writes entries with names and texts by turns.
func pack(t testing.TB, entries ...any) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(entries); i += 2 {
		text := entries[i+1].([]byte)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: entries[i].(string), Size: int64(len(text)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (d *Dir) put(t testing.TB, p []byte) {
	t.Helper()
	b := piece(p)
	if err := content.WriteBlob(t.Context(), d.store, b.Digest.String(), bytes.NewReader(p), ocispec.Descriptor{Digest: b.Digest, Size: b.Size}); err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDeltaArchive: the layer is there once the archive was read, from a base that was there;
// without it nothing is written.
func TestDeltaArchive(t *testing.T) {
	t.Parallel()
	a := writeDelta(t)
	text, err := a.contents.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p := pack(t, ContentsName, text, LayoutName, []byte(DeltaLayout), BlobName(piece(a.manifest).Digest), a.manifest, BlobName(piece(a.delta).Digest), a.delta)
	dir := openDir(t)
	_, _, err = dir.Read(t.Context(), bytes.NewReader(p), "")
	var base *BaseError
	if !errors.As(err, &base) || len(base.Missing) != 1 || base.Missing[0] != piece(a.base) {
		t.Errorf("without the base: %v", err)
	}
	if err := dir.store.Walk(t.Context(), func(info content.Info) error { return errors.New(info.Digest.String()) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("written all the same: %v", err)
	}
	dir.put(t, a.base)
	for _, ref := range []string{"", "docker.io/library/other:v1"} {
		imgs, leftOut, err := dir.Read(t.Context(), bytes.NewReader(p), ref)
		if err != nil || len(imgs) != 1 || len(leftOut) > 0 || imgs[0].Target.Digest != piece(a.manifest).Digest {
			t.Fatalf("%q: %v %v %v", ref, imgs, leftOut, err)
		}
		if want := max(ref, ""); want != "" && imgs[0].Reference != want || want == "" && imgs[0].Reference != a.contents.Image.Reference {
			t.Errorf("as %q it is called %s", ref, imgs[0].Reference)
		}
	}
	if got, err := content.ReadBlob(t.Context(), dir.store, ocispec.Descriptor{Digest: piece(a.layer).Digest}); err != nil || !bytes.Equal(got, a.layer) {
		t.Errorf("the layer has %d bytes, %v", len(got), err)
	}
}

// TestNoImageOfDeltaArchive: what reads OCI layouts refuses a delta archive and says what it
// is.
func TestNoImageOfDeltaArchive(t *testing.T) {
	t.Parallel()
	a := writeDelta(t)
	text, err := a.contents.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// A directory before the contents, and it is not taken for one.
	p := pack(t, "other", []byte{}, ContentsName, text, LayoutName, []byte(DeltaLayout), BlobName(piece(a.manifest).Digest), a.manifest, BlobName(piece(a.delta).Digest), a.delta)
	if _, _, err := openDir(t).Read(t.Context(), bytes.NewReader(p), ""); err == nil || !strings.Contains(err.Error(), "unsupported OCI version seeder-delta-1, which only seeder reads: seeder announce --from FILE") {
		t.Errorf("read as an OCI layout: %v", err)
	}
}

// FuzzContents: no text makes decodeContents panic, and what it takes is within the bounds
// and comes back as it was.
func FuzzContents(f *testing.F) {
	a := writeDelta(f)
	text, err := a.contents.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1,"image":{"reference":"x"},"needs":[{"digest":"sha256:","size":-1}]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := decodeContents(bytes.NewReader(p))
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("taken, and refused: %v", err)
		}
		back, err := decodeContents(bytes.NewReader(again))
		if err != nil {
			t.Fatal(err)
		}
		once, err := back.Encode()
		if err != nil || !bytes.Equal(once, again) {
			t.Errorf("%s became %s, %v", again, once, err)
		}
	})
}

// FuzzDeltaArchive: whatever an archive says and has, what is in the store afterwards has
// the digests that it is called by, and is within what the contents say.
func FuzzDeltaArchive(f *testing.F) {
	a := writeDelta(f)
	text, err := a.contents.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, a.manifest, a.delta, "")
	f.Add(text, a.manifest, a.delta[:len(a.delta)/2], "blobs/sha256/x")
	f.Add(text, a.base, a.delta, ContentsName)
	dir := openDir(f)
	dir.put(f, a.base)
	f.Fuzz(func(t *testing.T, text, blob, d []byte, extra string) {
		entries := []any{ContentsName, text}
		c, err := decodeContents(bytes.NewReader(text))
		if err == nil && len(c.Blobs)+len(c.Deltas) > 16 {
			return
		}
		for _, p := range c.Blobs {
			entries = append(entries, BlobName(p.Digest), blob)
		}
		for _, p := range c.Deltas {
			entries = append(entries, BlobName(p.Digest), d)
		}
		if extra != "" {
			if tar.NewWriter(io.Discard).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: extra}) != nil {
				return // no archive has such a name
			}
			entries = append(entries, extra, blob)
		}
		var out bytes.Buffer
		if _, _, err := dir.Read(t.Context(), io.TeeReader(bytes.NewReader(pack(t, entries...)), &out), ""); err != nil {
			var base *BaseError
			if errors.As(err, &base) && out.Len() > 64<<10+len(text) {
				t.Errorf("%d bytes were read before the missing base was told", out.Len())
			}
			return
		}
		err = dir.store.Walk(t.Context(), func(info content.Info) error {
			p, err := content.ReadBlob(t.Context(), dir.store, ocispec.Descriptor{Digest: info.Digest})
			if err != nil || digest.FromBytes(p) != info.Digest {
				t.Errorf("%s has other bytes, %v", info.Digest, err)
			}
			if info.Digest != piece(a.base).Digest {
				return dir.store.Delete(t.Context(), info.Digest)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
