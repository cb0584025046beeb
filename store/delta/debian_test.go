package delta

import (
	"archive/tar"
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// layerBytes bounds the files of a layer of this corpus.
const layerBytes = 6 << 20

// regular are the regular files of names, up to layerBytes of them. What a machine was spared
// (manual pages) is left out.
func regular(root string, names []string) (out []string) {
	left := int64(layerBytes)
	for _, name := range names {
		if s, err := os.Lstat(filepath.Join(root, name)); err == nil && s.Mode().IsRegular() && s.Size() <= left {
			out, left = append(out, name), left-s.Size()
		}
	}
	return out
}

// tarOf is a layer of these files.
func tarOf(t *testing.T, root string, files []string, at time.Time) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range files {
		s, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: int64(s.Mode().Perm()), Size: int64(len(p)), ModTime: at})
		}
		if err == nil {
			_, err = w.Write(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// realPackers are those that layers have today: none, Go's, klauspost's, GNU gzip, pigz.
func realPackers() []packer {
	var out []packer
	for _, p := range packers() {
		if slices.Contains([]string{"go -1", "klauspost -1", "[gzip -6]", "[pigz -6]"}, p.name) {
			out = append(out, p)
		}
	}
	return append(out, packer{"plain", func(_ testing.TB, p []byte) []byte { return p }})
}

// comesBack takes a build of a layer to the next, in each packing; most is %.
func comesBack(t *testing.T, old, now []byte, most float64) {
	for _, p := range realPackers() {
		t.Run(p.name, func(t *testing.T) {
			base, target := p.pack(t, old), p.pack(t, now)
			kind, err := KindOf(base, target)
			if err != nil {
				t.Fatal(err)
			}
			n := len(roundTripAs(t, kind, base, target))
			share := 100 * float64(n) / float64(len(target))
			if t.Logf("%d bytes of a layer of %d: %.2f %%", n, len(target), share); share > most {
				t.Errorf("%.2f %% of the layer, want at most %.0f %%", share, most)
			}
		})
	}
}

// TestLayersOfThisMachine: the files of Debian packages that are installed here, then with
// other mtimes, one package less, and one file edited.
func TestLayersOfThisMachine(t *testing.T) {
	list := func(packages ...string) []string {
		out, err := exec.CommandContext(t.Context(), "dpkg", append([]string{"-L"}, packages...)...).Output()
		if err != nil {
			t.Skipf("the packages %v of Debian are not on this machine: %v", packages, err)
		}
		return strings.Split(string(out), "\n")
	}
	files, sed := regular("/", list("debianutils", "grep", "sed", "tar", "gzip", "bash", "coreutils")), list("sed")
	less := slices.DeleteFunc(slices.Clone(files), func(s string) bool { return slices.Contains(sed, s) })
	old := tarOf(t, "/", files, time.Unix(1_700_000_000, 0))
	now := tarOf(t, "/", less, time.Unix(1_750_000_000, 0))
	at := bytes.Index(now, []byte("#!/bin/sh"))
	if len(old) < 1<<20 || at < 0 {
		t.Fatalf("a layer of %d bytes, a script at %d of it", len(old), at)
	}
	copy(now[at:], "#!/bin/ed")
	comesBack(t, old, now, 3)
}

// TestUpgradedPackage: a package of Debian's archive in two versions, in layers with nothing
// else.
func TestUpgradedPackage(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	const name = "libssl3"
	out, err := exec.CommandContext(ctx, "apt-cache", "madison", name).Output()
	if err != nil {
		t.Skipf("apt-cache: %v", err)
	}
	var versions []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Split(line, "|"); len(f) > 1 && !slices.Contains(versions, strings.TrimSpace(f[1])) {
			versions = append(versions, strings.TrimSpace(f[1]))
		}
	}
	if len(versions) < 2 {
		t.Skipf("the lists of apt have %d versions of %s, 2 are needed", len(versions), name)
	}
	var layers [2][]byte
	for i, v := range []string{versions[1], versions[0]} {
		dir := t.TempDir()
		get := exec.CommandContext(ctx, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name+"="+v)
		get.Dir = dir
		if out, err := get.CombinedOutput(); err != nil {
			t.Skipf("apt-get download %s=%s: %v: %s", name, v, err, out)
		}
		debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
		if len(debs) != 1 {
			t.Fatalf("%d packages", len(debs))
		}
		root := filepath.Join(dir, "root")
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], root).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v: %s", err, out)
		}
		var files []string
		if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			files = append(files, strings.TrimPrefix(path, root))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		layers[i] = tarOf(t, root, regular(root, files), time.Unix(1_700_000_000+int64(i), 0))
	}
	t.Logf("%s %s and %s: %d and %d bytes", name, versions[1], versions[0], len(layers[0]), len(layers[1]))
	comesBack(t, layers[0], layers[1], 60)
}
