package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// imageSpec says what a test image holds.
type imageSpec struct {
	ref     string
	says    string // what a container from it prints
	payload int    // bytes of compressible payload, in a layer of its own
	random  int    // bytes of payload that does not compress
	gzip    bool   // layers as gzip blobs
	seed    uint64 // of the payload
}

// writeImage packs an image that runs: Debian's static busybox, a script, and
// payload. `docker save` writes the same form.
func writeImage(t *testing.T, dir string, spec imageSpec) string {
	t.Helper()
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is not installed: %v; `make test` installs it", err)
	}
	base := tarOf(t, map[string][]byte{"bin/busybox": shell, "bin/sh": shell})
	app := tarOf(t, map[string][]byte{"say": []byte("#!/bin/sh\necho " + spec.says + "\n")})
	data := tarOf(t, map[string][]byte{"data/text": words(spec.seed, spec.payload), "data/random": noise(spec.seed, spec.random)})
	layers := [][]byte{base, data, app}

	var diffIDs, names []string
	files := map[string][]byte{}
	for _, l := range layers {
		sum := sha256.Sum256(l)
		diffIDs = append(diffIDs, "sha256:"+hex.EncodeToString(sum[:]))
		if spec.gzip {
			l = gzipped(t, l)
		}
		name := hex.EncodeToString(sum[:]) + "/layer.tar"
		names = append(names, name)
		files[name] = l
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": []string{"/say"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	files["config.json"] = config
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{spec.ref}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	files["manifest.json"] = manifest
	path := filepath.Join(dir, fmt.Sprintf("image-%d.tar", spec.seed))
	if err := os.WriteFile(path, tarOf(t, files), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if d := filepath.Dir(name); d != "." && !dirs[d] {
			dirs[d] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// words compress to about a third, as program files do.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%08x the image %d ", r.Uint32(), r.Uint32()%1000)
	}
	return []byte(b.String()[:n])
}

// noise does not compress.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
