package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemoImage reads the packed archive back as containerd would: every layer
// that the manifest names is there, and the config has its digest.
func TestDemoImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "image.tar")
	p, err := packDemoImage(t.Context(), file, dir)
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

// TestDemoDiesWithItsNodes: a demo that is killed leaves no process behind.
func TestDemoDiesWithItsNodes(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	cmd := exec.Command("seeder", "demo", "--nodes", "2")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "know each other") {
	}
	if n := len(processesIn(t, tmp)); n != 2 {
		t.Errorf("%d nodes are running, want 2", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	deadline := time.After(10 * time.Second)
	for len(processesIn(t, tmp)) > 0 {
		select {
		case <-deadline:
			t.Fatalf("still running: %v", processesIn(t, tmp))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// processesIn are the processes with dir in their arguments.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), dir) {
			out = append(out, filepath.Dir(f))
		}
	}
	return out
}
