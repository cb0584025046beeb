package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"seeder/store/chunk"
)

func TestBadInput(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 400_000))
	_, err := s.Prepare(t.Context(), "k3s-dashbord:latest", chunk.PrepareOptions{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), full) {
		t.Errorf("unknown reference: %v, want the nearest named", err)
	}
	if _, err := s.Prepare(t.Context(), "Not A Reference", chunk.PrepareOptions{}); err == nil || !strings.Contains(err.Error(), "NAME[:TAG]") {
		t.Errorf("bad reference: %v, want the form", err)
	}
	archive := dockerArchive(t, "x:1", layer(t, "x", 300_000))
	before, _ := s.List(t.Context())
	for name, tc := range map[string]struct {
		data []byte
		ref  string
		want string
	}{
		"noise":       {bytes.Repeat([]byte("no tar "), 1000), "", "docker-archive or OCI-layout"},
		"empty":       {nil, "", "docker-archive or OCI-layout"},
		"cut off":     {archive[:len(archive)/2], "", ""},
		"no image":    {tarOf(t, entry{"readme", []byte("hello")}), "", "docker-archive or OCI-layout"},
		"no name":     {dockerArchive(t, "", layer(t, "y", 1000)), "", "no name"},
		"lost layer":  {lossy(t, archive), "", ""},
		"other names": {dockerArchive(t, "x:1", layer(t, "z", 1000)), "Bad Ref", "NAME[:TAG]"},
	} {
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(tc.data), tc.ref); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("archive %s: %v, want %q", name, err, tc.want)
		}
	}
	after, _ := s.List(t.Context())
	if len(before) != len(after) {
		t.Errorf("bad archives left names: %v, before %v", after, before)
	}
	ready(t, s, p)
	if _, err := s.Image(t.Context(), []byte("{}")); err == nil {
		t.Error("an empty seed index was opened")
	}
}

// lossy drops the first layer from an archive.
func lossy(t *testing.T, archive []byte) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	var keep []entry
	for i := 0; ; i++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, err2 := io.ReadAll(r)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			keep = append(keep, entry{h.Name, b})
		}
	}
	return tarOf(t, keep...)
}

func TestArchiveTakesTheNameGiven(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	got, err := s.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, "", layer(t, "y", 1000))), "mine:3")
	if err != nil || !slices.Equal(got.Names, []string{"docker.io/library/mine:3"}) {
		t.Fatalf("got %v %v", got.Names, err)
	}
}
