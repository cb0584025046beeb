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
	"slices"
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

// Engine is one Docker or Podman. Its last use is Close.
type Engine struct {
	Kind   string // Docker or Podman
	Host   string // unix:///run/docker.sock
	client *client.Client
}

// Image is what an engine has under a reference.
type Image struct {
	Name    string        // by which the engine knows it
	ID      digest.Digest // of the config; of the manifest or index where Docker uses containerd's store
	Created time.Time     // zero where the image does not say
}

// Hosts are where an engine may be: DOCKER_HOST alone, where it is set; else the
// sockets of Docker and Podman that are there, those of the system before those of
// the user (also of the one who called sudo).
func Hosts(lookupEnv func(string) (string, bool)) []string {
	if host, ok := lookupEnv("DOCKER_HOST"); ok && host != "" {
		return []string{host}
	}
	dirs := []string{"/run", "/var/run"}
	if dir, ok := lookupEnv("XDG_RUNTIME_DIR"); ok && filepath.IsAbs(dir) {
		dirs = append(dirs, dir)
	}
	if uid, ok := lookupEnv("SUDO_UID"); ok && uid != "" && uid != "0" && strings.Trim(uid, "0123456789") == "" {
		dirs = append(dirs, "/run/user/"+uid)
	}
	var out []string
	for _, dir := range dirs {
		for _, name := range []string{"docker.sock", "podman/podman.sock"} {
			path, err := filepath.EvalSymlinks(filepath.Join(dir, name)) // docker.sock may be Podman's
			info, serr := os.Stat(path)
			if err == nil && serr == nil && info.Mode()&fs.ModeSocket != 0 && !slices.Contains(out, "unix://"+path) {
				out = append(out, "unix://"+path)
			}
		}
	}
	return out
}

// Open asks what is at host, which has to be a unix socket.
func Open(ctx context.Context, host string) (*Engine, error) {
	if !strings.HasPrefix(host, "unix://") {
		return nil, fmt.Errorf("%s is not on this host; use docker save … | seeder announce --from -", host)
	}
	cl, err := client.New(client.WithHost(host), client.WithUserAgent("seeder"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", host, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	v, err := cl.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask for Docker or Podman at %s: %w", host, err), cl.Close())
	}
	e := &Engine{Kind: Docker, Host: host, client: cl}
	for _, c := range v.Components {
		if strings.Contains(c.Name, "Podman") {
			e.Kind = Podman
		}
	}
	return e, nil
}

// Close ends the connection.
func (e *Engine) Close() error { return e.client.Close() }

// Find returns what the engine has under ref, a normalised reference. The error of
// an unknown one wraps fs.ErrNotExist.
func (e *Engine) Find(ctx context.Context, ref string) (Image, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	for _, name := range e.names(ref) {
		got, err := e.client.ImageInspect(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return Image{}, fmt.Errorf("ask %s (%s) for %s: %w", e.Kind, e.Host, ref, err)
		}
		img := Image{Name: name, ID: engineID(got.ID)}
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

// names are those under which the engine may have ref: Podman builds k3s-dashboard as
// localhost/k3s-dashboard. That comes first: under the other name it has what was
// pulled or loaded, and what was built here is what is meant.
func (e *Engine) names(ref string) []string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil || e.Kind != Podman {
		return []string{ref}
	}
	if short := reference.FamiliarString(named); !strings.Contains(short, "/") {
		return []string{"localhost/" + short, ref}
	}
	return []string{ref}
}

// Save streams an image as a docker-archive. The reader ends with ctx.
func (e *Engine) Save(ctx context.Context, img Image) (io.ReadCloser, error) {
	r, err := e.client.ImageSave(ctx, []string{img.Name})
	if err != nil {
		return nil, fmt.Errorf("take %s from %s (%s): %w", img.Name, e.Kind, e.Host, err)
	}
	return r, nil
}
