package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

const (
	demoImageName = "seeder-demo:latest"

	// maxDemoFileBytes keeps single files from filling a layer; maxDemoVisits
	// bounds the walk through a directory of any size.
	maxDemoFileBytes = 4 << 20
	maxDemoVisits    = 50_000
)

// imageBytes is about how large the demo's image is.
const imageBytes = 39 << 20

// demoLayer is a directory of this machine and how much of it makes a layer.
type demoLayer struct {
	dir   string
	bytes int64
}

// demoLayers are the layers of an image of about size bytes.
func demoLayers(size int64) []demoLayer {
	part := size / 39
	return []demoLayer{{"/usr/bin", 16 * part}, {"/usr/lib", 14 * part}, {"/usr/share", 8 * part}, {"/etc", part}}
}

// packed is what PackImage did.
type packed struct {
	files, layers int
	bytes         int64 // of all layers
}

// packedLayer is a plain tar on disk.
type packedLayer struct {
	file  string
	hex   string // sha256
	bytes int64
	files int
}

// PackImage writes a docker-archive of plain tar layers, as `docker save`
// does, from files of this machine that everybody may read, about size bytes of
// them. Unfinished layers are in dir and removed.
func PackImage(ctx context.Context, archive, dir string, size int64) (packed, error) {
	var layers []packedLayer
	defer func() {
		for _, l := range layers {
			os.Remove(l.file)
		}
	}()
	var p packed
	for i, want := range demoLayers(size) {
		l, err := packLayer(ctx, filepath.Join(dir, fmt.Sprintf("layer%d.tar", i)), want)
		layers = append(layers, l)
		if err != nil {
			return packed{}, fmt.Errorf("layer from %s: %w", want.dir, err)
		}
		p.files, p.layers, p.bytes = p.files+l.files, p.layers+1, p.bytes+l.bytes
	}
	if p.files == 0 {
		return packed{}, errors.New("no readable files in /usr; use --image FILE")
	}
	return p, writeArchive(archive, layers)
}

// packLayer writes regular files of want.dir until the layer has its size.
func packLayer(ctx context.Context, file string, want demoLayer) (l packedLayer, err error) {
	l.file = file
	f, err := os.Create(file)
	if err != nil {
		return l, err
	}
	defer f.Close()
	sum := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(f, sum))
	visits := 0
	err = filepath.WalkDir(want.dir, func(path string, d fs.DirEntry, err error) error {
		if visits++; visits > maxDemoVisits || l.bytes >= want.bytes {
			return fs.SkipAll
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || !d.Type().IsRegular() {
			return nil // not ours to read, or no file: the next one will do
		}
		n, err := packFile(tw, path, d)
		if n > 0 {
			l.files, l.bytes = l.files+1, l.bytes+n
		}
		return err
	})
	if err = errors.Join(err, tw.Close(), f.Close()); err != nil {
		return l, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return l, err
	}
	l.bytes, l.hex = info.Size(), hex.EncodeToString(sum.Sum(nil))
	return l, nil
}

// packFile adds one file and returns its size, 0 where it was left out. It is
// read before its header is written, since it may change meanwhile.
func packFile(tw *tar.Writer, path string, d fs.DirEntry) (int64, error) {
	info, err := d.Info()
	if err != nil || info.Size() == 0 || info.Size() > maxDemoFileBytes || info.Mode().Perm()&0o004 == 0 {
		return 0, nil
	}
	data, err := cli.ReadBounded(path, maxDemoFileBytes)
	if err != nil || len(data) == 0 {
		return 0, nil
	}
	err = tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Size: int64(len(data)),
		Mode: int64(info.Mode().Perm()), ModTime: info.ModTime().Truncate(time.Second), Format: tar.FormatPAX,
	})
	if err != nil {
		return 0, err
	}
	_, err = tw.Write(data)
	return int64(len(data)), err
}

// writeArchive puts layers, config and manifest.json into a docker-archive.
func writeArchive(file string, layers []packedLayer) error {
	conf, err := imageConfig(layers)
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(conf)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	var names []string
	for _, l := range layers {
		names = append(names, l.hex+"/layer.tar")
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{demoImageName}, "Layers": names}})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	for i, l := range layers {
		if err := addLayer(tw, names[i], l); err != nil {
			return err
		}
	}
	err = errors.Join(
		addEntry(tw, configName, int64(len(conf)), bytes.NewReader(conf)),
		addEntry(tw, "manifest.json", int64(len(manifest)), bytes.NewReader(manifest)))
	return errors.Join(err, tw.Close(), f.Close())
}

func addLayer(tw *tar.Writer, name string, l packedLayer) error {
	f, err := os.Open(l.file)
	if err != nil {
		return err
	}
	defer f.Close()
	return addEntry(tw, name, l.bytes, f)
}

func addEntry(tw *tar.Writer, name string, bytes int64, r io.Reader) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: bytes, Mode: 0o644}); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}

// imageConfig is an OCI image config that a container could be started with.
func imageConfig(layers []packedLayer) ([]byte, error) {
	var diffIDs []string
	for _, l := range layers {
		diffIDs = append(diffIDs, "sha256:"+l.hex)
	}
	return json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      time.Now().UTC().Truncate(time.Second),
		"config":       map[string]any{"Cmd": []string{"/usr/bin/env"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
}
