package engines

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFromDirectory: an OCI layout is read as it is, with the size that is announced
// for the progress, and nothing outside it.
func TestFromDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": "{}", "blobs/sha256/ab": strings.Repeat("x", 5000), "blobs/sha256/cd": ""}
	writeFiles(t, dir, want)
	writeFiles(t, dir, map[string]string{"ingest/half": "unfinished", ".lock": ""})
	src, err := OpenArchive(dir)
	if err != nil {
		t.Fatal(err)
	}
	count := &countingBytes{r: src.Archive}
	got := map[string]string{}
	r := tar.NewReader(count)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, rerr := io.ReadAll(r)
		if err := errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(b)
	}
	if _, err := io.Copy(io.Discard, count); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("packed %d files, want %d: %v", len(got), len(want), got)
	}
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s: %d bytes", name, len(got[name]))
		}
	}
	if count.n != src.Bytes {
		t.Errorf("%d bytes came, %d were announced", count.n, src.Bytes)
	}
	if err := src.Archive.Close(); err != nil {
		t.Error(err)
	}
	// One that is not read to its end.
	if src, err = OpenArchive(dir); err == nil {
		err = src.Archive.Close()
	}
	if err != nil {
		t.Error(err)
	}
	// A link out of the directory.
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "blobs/sha256/ef")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenArchive(dir); err == nil {
		t.Error("a link that leads out of the directory was followed")
	}
}

type countingBytes struct {
	r io.Reader
	n int64
}

func (c *countingBytes) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestFromOtherDirectories: they are refused with what they are.
func TestFromOtherDirectories(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"skopeo's":    {map[string]string{"version": "Directory Transport Version: 1.1\n", "manifest.json": "{}"}, "the format dir: of skopeo"},
		"a parent":    {map[string]string{"image/oci-layout": "{}"}, "the OCI layout is in image: seeder announce --from "},
		"an unpacked": {map[string]string{"manifest.json": "[]"}, "an unpacked archive; pack it: tar -C "},
		"another":     {map[string]string{"readme": "hello"}, "without an OCI layout"},
	} {
		dir := t.TempDir()
		writeFiles(t, dir, tc.files)
		if _, err := OpenArchive(dir); err == nil || cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
