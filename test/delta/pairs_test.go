package delta

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair makes two builds of a layer as plain tars. An error is why it cannot be had here.
type pair struct {
	name string
	make func(t *testing.T, dir string) (old, now string, err error)
}

func pairs(most int64) []pair {
	return []pair{
		{"1 % of files edited", edited(most, func(i int, _ *tar.Header, p []byte) []byte {
			if i%100 == 7 {
				p = slices.Concat(p[:len(p)/2], []byte("a line more\n"), p[len(p)/2:])
			}
			return p
		})},
		{"all mtimes changed", edited(most, func(_ int, h *tar.Header, p []byte) []byte {
			h.ModTime = h.ModTime.Add(1000 * time.Hour)
			return p
		})},
		{"a file inserted near the front", edited(most, func(i int, _ *tar.Header, p []byte) []byte {
			if i == 3 {
				p = append(bytes.Repeat([]byte("a new beginning "), 5000), p...)
			}
			return p
		})},
		{"Go binary, one line changed", goBinary(func(_ *testing.T, root, dir string) ([]string, string, error) {
			overlay, err := oneLine(root, dir)
			return []string{"-overlay", overlay}, root, err
		})},
		{"Go binary, 12 commits later", goBinary(func(t *testing.T, root, dir string) ([]string, string, error) {
			before := filepath.Join(dir, "before")
			err := command(t, root, "git", "worktree", "add", "--detach", before, "HEAD~12")
			t.Cleanup(func() { _ = exec.Command("git", "-C", root, "worktree", "remove", "--force", before).Run() })
			return nil, before, err
		})},
		{"Python site-packages, one upgraded", debs([]string{"python3-django", "python3-numpy", "python3-cryptography", "python3-requests", "python3-urllib3", "python3-jinja2", "python3-sqlalchemy"}, "python3-django")},
		{"node_modules, one package upgraded", nodeModules},
		{"jar of 3,000 classes, one changed", jar},
		{"Debian packages, one upgraded", debs([]string{"libssl3", "libc6", "perl-base", "bash", "coreutils", "curl", "libcurl4", "openssl", "git", "ca-certificates"}, "libssl3")},
	}
}

// tarOf writes the files of dir to path, up to most bytes; edit may change each.
func tarOf(path, dir string, most int64, edit func(i int, h *tar.Header, p []byte) []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	i, n := 0, int64(0)
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		h := &tar.Header{Name: rel, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime().Truncate(time.Second)}
		if edit != nil {
			p = edit(i, h, p)
		}
		h.Size = int64(len(p))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		i++
		if n += h.Size; n > most {
			return fs.SkipAll
		}
		return nil
	})
	return errors.Join(err, w.Close())
}

// edited is a pair of the files of BENCH_DELTA_DIR, or of Go's sources.
func edited(most int64, edit func(int, *tar.Header, []byte) []byte) func(*testing.T, string) (string, string, error) {
	return func(t *testing.T, dir string) (string, string, error) {
		from := os.Getenv("BENCH_DELTA_DIR")
		if from == "" {
			root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
			if err != nil {
				return "", "", fmt.Errorf("go env GOROOT: %w", err)
			}
			from = filepath.Join(strings.TrimSpace(string(root)), "src")
		}
		from, err := filepath.EvalSymlinks(from)
		old, now := filepath.Join(dir, "old"), filepath.Join(dir, "now")
		return old, now, errors.Join(err, tarOf(old, from, most, nil), tarOf(now, from, most, edit))
	}
}

// layers are the tars of two directories.
func layers(dir, old, now string) (string, string, error) {
	a, b := filepath.Join(dir, "old.tar"), filepath.Join(dir, "now.tar")
	return a, b, errors.Join(tarOf(a, old, 1<<40, nil), tarOf(b, now, 1<<40, nil))
}

func command(t *testing.T, dir, name string, args ...string) error {
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %.300s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// goBinary is a pair of seeder's own binaries: as it is, and as other says.
func goBinary(other func(t *testing.T, root, dir string) (args []string, from string, err error)) func(*testing.T, string) (string, string, error) {
	return func(t *testing.T, dir string) (string, string, error) {
		root, err := filepath.Abs("../..")
		if err != nil {
			return "", "", err
		}
		args, from, err := other(t, root, dir)
		if err != nil {
			return "", "", err
		}
		build := func(from, to string, args ...string) error {
			return command(t, from, "go", slices.Concat([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"}, args, []string{"-o", filepath.Join(dir, to, "seeder"), "./cmd/seeder"})...)
		}
		if err := errors.Join(build(from, "old", args...), build(root, "now")); err != nil {
			return "", "", err
		}
		return layers(dir, filepath.Join(dir, "old"), filepath.Join(dir, "now"))
	}
}

// oneLine is an overlay for go build, in dir, that adds a file of one function.
func oneLine(root, dir string) (string, error) {
	line, overlay := filepath.Join(dir, "line.go"), filepath.Join(dir, "overlay.json")
	return overlay, errors.Join(
		os.WriteFile(line, []byte("package main\n\nimport \"fmt\"\n\nfunc init() { fmt.Print(\"\") }\n"), 0o600),
		os.WriteFile(overlay, fmt.Appendf(nil, `{"Replace": {%q: %q}}`, filepath.Join(root, "cmd/seeder/line.go"), line), 0o600))
}

// debs is a pair of unpacked Debian packages of which one is there in its two newest versions
// of the archive.
func debs(names []string, upgraded string) func(*testing.T, string) (string, string, error) {
	return func(t *testing.T, dir string) (string, string, error) {
		list, err := exec.CommandContext(t.Context(), "apt-cache", "madison", upgraded).Output()
		if err != nil {
			return "", "", fmt.Errorf("apt-cache madison %s: %w", upgraded, err)
		}
		var versions []string
		for line := range strings.Lines(string(list)) {
			if f := strings.Split(line, "|"); len(f) > 1 {
				versions = append(versions, strings.TrimSpace(f[1]))
			}
		}
		versions = slices.Compact(versions)
		if len(versions) < 2 {
			return "", "", fmt.Errorf("the archive has %d versions of %s, 2 are needed; apt-get update may bring them", len(versions), upgraded)
		}
		for _, side := range []struct{ name, version string }{{"old", versions[1]}, {"now", versions[0]}} {
			debs, root := filepath.Join(dir, side.name+".debs"), filepath.Join(dir, side.name)
			if err := errors.Join(os.MkdirAll(debs, 0o755), os.MkdirAll(root, 0o755)); err != nil {
				return "", "", err
			}
			args := []string{"download", "-q", "-o", "APT::Sandbox::User=root"}
			for _, n := range names {
				if n == upgraded {
					n += "=" + side.version
				}
				args = append(args, n)
			}
			if err := command(t, debs, "apt-get", args...); err != nil {
				return "", "", err
			}
			files, _ := filepath.Glob(filepath.Join(debs, "*.deb"))
			for _, f := range files {
				if err := command(t, dir, "dpkg-deb", "-x", f, root); err != nil {
					return "", "", err
				}
			}
		}
		return layers(dir, filepath.Join(dir, "old"), filepath.Join(dir, "now"))
	}
}

func nodeModules(t *testing.T, dir string) (string, string, error) {
	for side, version := range map[string]string{"old": "1.7.7", "now": "1.7.9"} {
		to := filepath.Join(dir, side)
		if err := errors.Join(os.MkdirAll(to, 0o755), command(t, to, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", to,
			"axios@"+version, "express@4.21.2", "react@18.3.1", "react-dom@18.3.1", "typescript@5.6.3", "webpack@5.97.1", "lodash@4.17.21")); err != nil {
			return "", "", err
		}
	}
	return layers(dir, filepath.Join(dir, "old"), filepath.Join(dir, "now"))
}

// jar is an application with its libraries in one jar, as builds write it, before and after one
// class of it was compiled again.
func jar(t *testing.T, dir string) (string, string, error) {
	classes := filepath.Join(dir, "classes")
	if err := os.MkdirAll(classes, 0o755); err != nil {
		return "", "", err
	}
	jars, _ := filepath.Glob("/usr/share/java/*.jar")
	n := int64(0)
	for _, j := range jars {
		s, err := os.Lstat(j)
		if err != nil || !s.Mode().IsRegular() || n > 10<<20 {
			continue
		}
		n += s.Size()
		if err := command(t, classes, "jar", "xf", j); err != nil {
			return "", "", err
		}
	}
	if n == 0 {
		return "", "", errors.New("/usr/share/java has no jar to make one of: apt-get install libguava-java")
	}
	for i, side := range []string{"old", "now"} {
		source := filepath.Join(dir, "App.java")
		text := fmt.Sprintf("public class App { public static void main(String[] a) { System.out.println(%q); } }", strings.Repeat("more ", i+1))
		if err := errors.Join(os.WriteFile(source, []byte(text), 0o600), os.MkdirAll(filepath.Join(dir, side), 0o755),
			command(t, dir, "javac", "-d", classes, source), command(t, classes, "jar", "cf", filepath.Join(dir, side, "app.jar"), ".")); err != nil {
			return "", "", err
		}
	}
	return layers(dir, filepath.Join(dir, "old"), filepath.Join(dir, "now"))
}

// packing turns a tar into the layer that travels.
type packing struct {
	name string
	pack func(t *testing.T, from, to string) error
}

func filter(name string, args ...string) func(*testing.T, string, string) error {
	return func(t *testing.T, from, to string) (err error) {
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(to)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		if name == "" {
			return goGzip(out, in)
		}
		c := exec.CommandContext(t.Context(), name, args...)
		c.Stdin, c.Stdout = in, out
		if err := c.Run(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
}

func packings() []packing {
	return []packing{
		{"plain", func(_ *testing.T, from, to string) error { return os.Link(from, to) }},
		{"gzip of Docker, BuildKit", filter("")},
		{"pgzip (podman)", filter("../../bin/pgzip")},
		{"GNU gzip -6", filter("gzip", "-n")},
		{"pigz -6", filter("pigz", "-n")},
	}
}
