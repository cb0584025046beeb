// Package source is where an image may come from besides containerd: the Docker and
// Podman engines of this host, asked through the Docker API on their sockets.
//
// It finds the engines, says what each has under a reference, and streams an image
// out of one as a docker-archive; it writes nothing anywhere, changes nothing in an
// engine, and never decides which image is meant.
//
// Invariant: an engine that is not there, or does not answer, is no error of those
// that are.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
)

// The kinds of engines.
const (
	Docker = "docker"
	Podman = "podman"
)

// answerTimeout bounds what is asked of an engine, except for the image itself.
const answerTimeout = 5 * time.Second

// Engine is one Docker or Podman that may be there.
type Engine struct {
	Kind string // Docker or Podman
	Host string // unix:///run/docker.sock
}

// Image is what an engine has under a reference.
type Image struct {
	Engine  Engine
	Name    string        // by which the engine knows it
	ID      digest.Digest // of the config; of the manifest or index where Docker uses containerd's store
	Created time.Time     // zero where the image does not say
	Bytes   int64         // about
}

// Engines are those that may be on this host: DOCKER_HOST, where it is a unix socket,
// alone; else the sockets of Docker and Podman that are there, those of the system
// before those of the user (also of the one who called sudo).
func Engines(lookupEnv func(string) (string, bool)) []Engine {
	if host, ok := lookupEnv("DOCKER_HOST"); ok && host != "" {
		kind := Docker
		if strings.Contains(host, Podman) {
			kind = Podman
		}
		return []Engine{{kind, host}}
	}
	dirs := []string{"/run", "/var/run"}
	if dir, ok := lookupEnv("XDG_RUNTIME_DIR"); ok && filepath.IsAbs(dir) {
		dirs = append(dirs, dir)
	}
	if uid, ok := lookupEnv("SUDO_UID"); ok && uid != "" && uid != "0" && strings.Trim(uid, "0123456789") == "" {
		dirs = append(dirs, "/run/user/"+uid)
	}
	var out []Engine
	seen := map[string]bool{}
	for _, dir := range dirs {
		for _, e := range []Engine{{Docker, "docker.sock"}, {Podman, "podman/podman.sock"}} {
			path, err := filepath.EvalSymlinks(filepath.Join(dir, e.Host))
			if info, serr := os.Stat(path); err != nil || serr != nil || info.Mode()&fs.ModeSocket == 0 || seen[path] {
				continue // docker.sock may be a link to Podman's
			}
			seen[path] = true
			out = append(out, Engine{e.Kind, "unix://" + path})
		}
	}
	return out
}

// dial makes a client; nothing is sent yet.
func (e Engine) dial() (*client.Client, error) {
	if !strings.HasPrefix(e.Host, "unix://") {
		return nil, fmt.Errorf("%s is not on this host; use docker save … | seeder announce --from -", e.Host)
	}
	return client.New(client.WithHost(e.Host), client.WithUserAgent("seeder"))
}

// Find returns what the engine has under ref, a normalised reference. The error of
// an unknown one wraps fs.ErrNotExist.
func (e Engine) Find(ctx context.Context, ref string) (Image, error) {
	cl, err := e.dial()
	if err != nil {
		return Image{}, fmt.Errorf("%s: %w", e.Kind, err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	for _, name := range e.names(ref) {
		got, err := cl.ImageInspect(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return Image{}, fmt.Errorf("ask %s (%s) for %s: %w", e.Kind, e.Host, ref, err)
		}
		img := Image{Engine: e, Name: name, ID: engineID(got.ID), Bytes: got.Size}
		if created, err := time.Parse(time.RFC3339Nano, got.Created); err == nil {
			img.Created = created
		}
		return img, nil
	}
	return Image{}, fmt.Errorf("%s (%s) has no image %s: %w", e.Kind, e.Host, ref, fs.ErrNotExist)
}

// engineID completes Podman's ids, which lack the algorithm.
func engineID(id string) digest.Digest {
	if strings.Contains(id, ":") {
		return digest.Digest(id)
	}
	return digest.NewDigestFromEncoded(digest.SHA256, id)
}

// names are those under which the engine may have ref: Podman builds
// k3s-dashboard as localhost/k3s-dashboard.
func (e Engine) names(ref string) []string {
	names := []string{ref}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return names
	}
	if short := reference.FamiliarString(named); e.Kind == Podman && !strings.Contains(short, "/") {
		// Before the other: podman would answer for docker.io/library, too, what was
		// pulled from there, and what was built here is what is meant.
		return []string{"localhost/" + short, ref}
	}
	return names
}

// Open streams the image as a docker-archive. The reader ends with ctx.
func (i Image) Open(ctx context.Context) (io.ReadCloser, error) {
	cl, err := i.Engine.dial()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.Engine.Kind, err)
	}
	r, err := cl.ImageSave(ctx, []string{i.Name})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take %s from %s (%s): %w", i.Name, i.Engine.Kind, i.Engine.Host, err), cl.Close())
	}
	return &stream{ReadCloser: r, client: cl}, nil
}

// stream closes its connection with it.
type stream struct {
	io.ReadCloser
	client *client.Client
}

// Close ends the transfer.
func (s *stream) Close() error { return errors.Join(s.ReadCloser.Close(), s.client.Close()) }
