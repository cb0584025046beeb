package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/archive"
	"seeder/store/chunk"
	"seeder/store/export"
)

// exported writes an archive.
func exported(t testing.TB, s *Store, o export.Order) (p []byte, sum export.Summary) {
	t.Helper()
	var buf bytes.Buffer
	err := s.Export(t.Context(), o, func(ctx context.Context, a *export.Archive) error {
		sum = a.Summary
		return a.Write(ctx, &buf)
	})
	if err != nil {
		t.Fatalf("export %+v: %v", o, err)
	}
	return buf.Bytes(), sum
}

// entriesOf are the entries of a tar file.
func entriesOf(t testing.TB, p []byte) (names []string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(p)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, files[h.Name] = append(names, h.Name), b
	}
}

// imported reads an archive into a store, which has to take it, and announces it there.
func imported(t testing.TB, s *Store, p []byte, ref string) chunk.Prepared {
	t.Helper()
	got, err := s.ImportArchive(t.Context(), bytes.NewReader(p), "")
	if err != nil || !slices.Equal(got.Names, []string{ref}) {
		t.Fatalf("import: %q %v", got.Names, err)
	}
	prepared, err := s.Prepare(t.Context(), ref, chunk.PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return prepared
}

// leftBehind are the leases, and the files of deltas, that nothing should have left.
func leftBehind(t testing.TB, s *Store) (left []string) {
	t.Helper()
	left, err := s.ctrd.Leases.Names(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(s.cfg.DataDir, deltasDir, "building-*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(left, files...)
}

// v1 and v2 are two builds of an image.
const v1, v2 = "docker.io/library/app:v1", "docker.io/library/app:v2"

// twoBuilds is a store that has two builds, and the archive of the first.
func twoBuilds(t testing.TB, packed bool) (from *Store, first, next chunk.Prepared, whole []byte) {
	t.Helper()
	from = open(t, t.TempDir())
	small := layer(t, "small", 2000)
	before, after := builds(t, packed)
	first, next = second(t, from, v1, small, before), second(t, from, v2, small, after)
	whole, _ = exported(t, from, export.Order{Ref: "app:v1"})
	return from, first, next, whole
}

// TestExportWhole: the archive is an OCI layout under the image's name, the same each time,
// and gives the same image elsewhere.
func TestExportWhole(t *testing.T) {
	t.Parallel()
	from, first, _, p := twoBuilds(t, true)
	again, sum := exported(t, from, export.Order{Ref: "app:v1"})
	if !bytes.Equal(p, again) {
		t.Error("the same image gave two archives")
	}
	names, files := entriesOf(t, p)
	if len(names) != 6 || names[0] != "oci-layout" || names[1] != "index.json" {
		t.Errorf("entries %q", names)
	}
	var index ocispec.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("index.json %s: %v", files["index.json"], err)
	}
	if m := index.Manifests[0]; m.Digest != first.Target.Digest || m.Annotations["io.containerd.image.name"] != v1 || m.Annotations[ocispec.AnnotationRefName] != "v1" {
		t.Errorf("index.json has %+v", m)
	}
	var bytes int64
	for name, b := range files {
		if d, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if bytes += int64(len(b)); digest.FromBytes(b).Encoded() != d {
				t.Errorf("%s has other bytes", name)
			}
		}
	}
	if sum.Digest != first.Target.Digest || sum.Reference != v1 || sum.Bytes != bytes || sum.Blobs != 4 {
		t.Errorf("summary %+v, %d bytes of blobs", sum, bytes)
	}
	to := open(t, t.TempDir())
	if got := imported(t, to, p, v1); got.SeedDigest() != first.SeedDigest() {
		t.Errorf("elsewhere it is %s, want %s", got.SeedDigest(), first.SeedDigest())
	}
	if left := append(leftBehind(t, from), leftBehind(t, to)...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestExportSince: a host that has the earlier build makes the next one from what changed,
// to the bit; one that has not is told what is missing, and nothing is left there.
func TestExportSince(t *testing.T) {
	t.Parallel()
	for name, packed := range map[string]bool{"plain": false, "gzip": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, first, next, whole := twoBuilds(t, packed)
			p, sum := exported(t, from, export.Order{Ref: v2, Since: "app:v1"})
			if again, _ := exported(t, from, export.Order{Ref: v2, Since: v1, SinceAt: first.Target.Digest}); !bytes.Equal(p, again) {
				t.Error("the same two builds gave two archives")
			}
			if len(p) > len(whole)/20 || sum.Deltas != 1 || sum.LeftOut != 1 || sum.Blobs != 2 || sum.Since != first.Target.Digest {
				t.Errorf("%d bytes, %+v; the first build has %d bytes", len(p), sum, len(whole))
			}
			if strings.Contains(string(p[:512]), "index.json") {
				t.Error("it looks like an OCI layout")
			}
			empty := open(t, t.TempDir())
			_, err := empty.ImportArchive(t.Context(), bytes.NewReader(p), "")
			var base *archive.BaseError
			if !errors.As(err, &base) || len(base.Missing) != 2 || !strings.Contains(err.Error(), v1+"@"+first.Target.Digest.String()) || !strings.Contains(err.Error(), base.Missing[0].Digest.String()) {
				t.Errorf("without the earlier build: %v", err)
			}
			if left := leftBehind(t, empty); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if blobs, err := filepath.Glob(filepath.Join(empty.cfg.DataDir, "containerd", "*", "blobs", "sha256", "*")); err != nil || len(blobs) > 0 {
				t.Errorf("blobs are left: %q %v", blobs, err)
			}
			to := open(t, t.TempDir())
			imported(t, to, whole, v1)
			if got := imported(t, to, p, v2); got.SeedDigest() != next.SeedDigest() {
				t.Errorf("elsewhere it is %s, want %s", got.SeedDigest(), next.SeedDigest())
			}
			imported(t, to, packedWith(t, p, gzip.BestSpeed), v2) // once more, compressed: it is all here
			if left := leftBehind(t, to); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// TestExportRefuses: what cannot be exported is refused with the reason.
func TestExportRefuses(t *testing.T) {
	t.Parallel()
	from, _, _, _ := twoBuilds(t, false)
	for want, o := range map[string]export.Order{
		"has no image docker.io/library/app:v3":                     {Ref: "app:v3"},
		"names the build that is to be exported":                    {Ref: "app:v1", Since: "app:v1"},
		"the earlier build: ":                                       {Ref: "app:v1", Since: "app:v1", SinceAt: digest.FromString("another")},
		"has nothing of it for linux/s390x, only for linux/":        {Ref: "app:v1", Platform: "linux/s390x"},
		`invalid platform "a/b/c/d"`:                                {Ref: "app:v1", Platform: "a/b/c/d"},
		"does not keep it as an earlier version (images.keep_previ": {Ref: "app:v1", At: digest.FromString("x")},
	} {
		err := from.Export(t.Context(), o, func(context.Context, *export.Archive) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
	if left := leftBehind(t, from); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestExportOfDamage: no archive is written of a blob that is damaged, whole or as the base
// of a delta.
func TestExportOfDamage(t *testing.T) {
	t.Parallel()
	from, _, _, _ := twoBuilds(t, true)
	before, _ := builds(t, true)
	damage(t, filepath.Join(blobsDir(t, from), digest.FromBytes(before).Encoded()))
	for _, o := range []export.Order{{Ref: v1}, {Ref: v2, Since: v1}} {
		err := from.Export(t.Context(), o, func(ctx context.Context, a *export.Archive) error { return a.Write(ctx, io.Discard) })
		if err == nil || !strings.Contains(err.Error(), "damaged") && !strings.Contains(err.Error(), "incomplete") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// blobsDir is where the embedded store has its blobs.
func blobsDir(t testing.TB, s *Store) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(s.cfg.DataDir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasSuffix(path, "blobs/sha256") {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("no blobs below %s: %v", s.cfg.DataDir, err)
	}
	return found
}

// TestTornDeltaArchive: an archive that is cut off, changed or not what it says is refused,
// and the host is as before.
func TestTornDeltaArchive(t *testing.T) {
	t.Parallel()
	from, first, _, whole := twoBuilds(t, true)
	p, _ := exported(t, from, export.Order{Ref: v2, Since: v1})
	to := open(t, t.TempDir())
	imported(t, to, whole, v1)
	names, files := entriesOf(t, p)
	without := func(drop string, change func(name string, b []byte) []byte) []byte {
		var out []entry
		for _, name := range names {
			if name != drop {
				out = append(out, entry{name, change(name, bytes.Clone(files[name]))})
			}
		}
		return tarOf(t, out...)
	}
	same := func(_ string, b []byte) []byte { return b }
	last := names[len(names)-1] // the delta
	flip := func(at string) func(string, []byte) []byte {
		return func(name string, b []byte) []byte {
			if name == at {
				b[len(b)/2] ^= 1
			}
			return b
		}
	}
	replaced := func(old, new string) func(string, []byte) []byte {
		return func(name string, b []byte) []byte {
			if name == archive.ContentsName {
				return bytes.Replace(b, []byte(old), []byte(new), 1)
			}
			return b
		}
	}
	for what, c := range map[string]struct {
		p    []byte
		want string
	}{
		"cut off":          {p[:len(p)/2], "cut off"},
		"no delta":         {without(last, same), "it is incomplete"},
		"a damaged delta":  {without("", flip(last)), "the delta of layer sha256:"},
		"a damaged blob":   {without("", flip(names[2])), "has the digest"},
		"another version":  {without("", replaced(`"version": 1`, `"version": 2`)), "delta archive of version 2"},
		"no digest":        {without("", replaced("sha256:", "sha512:")), "want sha256"},
		"not JSON":         {without("", replaced("{", "[")), "invalid seeder-delta.json"},
		"a layout twice":   {tarOf(t, entry{names[0], files[names[0]]}, entry{"oci-layout", nil}, entry{"oci-layout", nil}), `"oci-layout" is not in its seeder-delta.json, or comes twice`},
		"a large layout":   {tarOf(t, entry{names[0], files[names[0]]}, entry{"oci-layout", make([]byte, 8<<20+1)}), "oci-layout has 8388609 bytes, at most"},
		"an unknown entry": {tarOf(t, entry{names[0], files[names[0]]}, entry{"blobs/sha256/x", nil}), "is not in its"},
	} {
		if _, err := to.ImportArchive(t.Context(), bytes.NewReader(c.p), ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		if left := leftBehind(t, to); len(left) > 0 {
			t.Errorf("%s: left behind: %q", what, left)
		}
	}
	have, err := to.List(t.Context())
	if err != nil || len(have) == 0 || have[v2] != "" || have[v1] != first.Target.Digest {
		t.Errorf("images %v, %v", have, err)
	}
	// The base is not what it was.
	before, _ := builds(t, true)
	damage(t, filepath.Join(blobsDir(t, to), digest.FromBytes(before).Encoded()))
	if _, err := to.ImportArchive(t.Context(), bytes.NewReader(p), ""); err == nil || !strings.Contains(err.Error(), "is damaged in this host's containerd") {
		t.Errorf("a damaged base: %v", err)
	}
}
