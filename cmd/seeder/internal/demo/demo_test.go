package demo

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemoImage reads the packed archive back as containerd would: every layer
// that the manifest names is there, and the config has its digest.
func TestDemoImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	p, err := PackImage(t.Context(), file, dir, imageBytes)
	if err != nil {
		t.Fatal(err)
	}
	if p.layers < 3 || p.bytes > 64<<20 || p.files == 0 {
		t.Errorf("%+v", p)
	}
	entries := readTar(t, file)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(entries["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	var conf struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(entries[manifest[0].Config], &conf); err != nil {
		t.Fatal(err)
	}
	if len(manifest[0].Layers) != p.layers || manifest[0].RepoTags[0] != demoImageName {
		t.Errorf("%+v", manifest)
	}
	for i, name := range manifest[0].Layers {
		sum := sha256.Sum256(entries[name])
		if got := "sha256:" + hex.EncodeToString(sum[:]); len(entries[name]) == 0 || got != conf.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s, the config says %s", i, got, conf.RootFS.DiffIDs[i])
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}

func readTar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]byte{}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSumSamples(t *testing.T) {
	t.Parallel()
	text := "# TYPE a counter\na{x=\"1\"} 5\na{x=\"2\"} 1e3\nab 7\nb 2.5\n"
	got, err := sumSamples(strings.NewReader(text), "a", "b", "c")
	if err != nil || got[0] != 1005 || got[1] != 2.5 || got[2] != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := sumSamples(strings.NewReader("a x\n"), "a"); err == nil {
		t.Error("no error for a value that is no number")
	}
}
