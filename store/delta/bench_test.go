package delta

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// tarOf is a tar of files of this machine, up to about most bytes. edit may change each.
func tarOf(b *testing.B, dir string, most int, edit func(i int, h *tar.Header, p []byte) []byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	i := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path, Mode: 0o644, ModTime: time.Unix(1_700_000_000, 0)}
		p = edit(i, h, p)
		i++
		h.Size = int64(len(p))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		if out.Len() > most {
			return fs.SkipAll
		}
		return nil
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDelta: what travels instead of the layer, and MB of tar for a second of CPU.
func BenchmarkDelta(b *testing.B) {
	dir, err := filepath.EvalSymlinks(os.Getenv("DELTA_DIR"))
	if dir == "" || err != nil {
		b.Skipf("DELTA_DIR names no directory of files: %v", err)
	}
	const most = 200 << 20
	same := func(_ int, _ *tar.Header, p []byte) []byte { return p }
	edited := func(i int, _ *tar.Header, p []byte) []byte {
		if i%100 == 7 {
			p = append(append(bytes.Clone(p[:len(p)/2]), "a line more\n"...), p[len(p)/2:]...)
		}
		return p
	}
	pairs := []struct {
		name string
		edit func(int, *tar.Header, []byte) []byte
	}{
		{"1 % of files edited", edited},
		{"the same, mtimes changed", func(i int, h *tar.Header, p []byte) []byte {
			h.ModTime = h.ModTime.Add(time.Hour * 1000)
			return edited(i, h, p)
		}},
		{"a file inserted near the front", func(i int, _ *tar.Header, p []byte) []byte {
			if i == 3 {
				p = append(noise(1, 50_000), p...)
			}
			return p
		}},
	}
	old := tarOf(b, dir, most, same)
	for _, p := range pairs {
		target := tarOf(b, dir, most, p.edit)
		b.Run("tar/"+p.name, func(b *testing.B) { measure(b, Bytes, old, target, len(target)) })
		b.Run("go gzip/"+p.name, func(b *testing.B) {
			measure(b, Deflate, zip(b, old), zip(b, target), len(target))
		})
	}
	for _, name := range []string{"DELTA_OLD", "DELTA_NEW"} {
		if os.Getenv(name) == "" {
			return
		}
	}
	before, err := os.ReadFile(os.Getenv("DELTA_OLD"))
	if err != nil {
		b.Fatal(err)
	}
	after, err := os.ReadFile(os.Getenv("DELTA_NEW"))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tar/binary rebuilt", func(b *testing.B) { measure(b, Bytes, before, after, len(after)) })
	b.Run("go gzip/binary rebuilt", func(b *testing.B) { measure(b, Deflate, zip(b, before), zip(b, after), len(after)) })
}

func zip(b *testing.B, p []byte) []byte {
	var out bytes.Buffer
	return written(b, stdgzip.NewWriter(&out), &out, p)
}

func measure(b *testing.B, kind Kind, base, target []byte, tar int) {
	from, to := blob(base), blob(target)
	var n, enc, dec float64
	for b.Loop() {
		var delta bytes.Buffer
		t0 := cpu()
		if _, _, err := Encode(context.Background(), &delta, kind, from, to, 0); err != nil {
			b.Fatal(err)
		}
		t1 := cpu()
		n = float64(delta.Len())
		if _, err := Decode(context.Background(), io.Discard, &delta, from); err != nil {
			b.Fatal(err)
		}
		enc, dec = enc+(t1-t0).Seconds(), dec+(cpu()-t1).Seconds()
	}
	mb := float64(tar) * float64(b.N) / 1e6
	b.ReportMetric(float64(len(target))/1e6, "whole-MB")
	b.ReportMetric(n/1e6, "delta-MB")
	b.ReportMetric(100*n/float64(len(target)), "share-%")
	b.ReportMetric(mb/enc, "encode-MB/cpu-s")
	b.ReportMetric(mb/dec, "decode-MB/cpu-s")
	b.ReportMetric(0, "ns/op")
}
