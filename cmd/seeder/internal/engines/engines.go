// Package engines finds images in the Docker and Podman of this host, as the user who
// runs the command may see them.
//
// It owns which engines --from means. It never writes to an engine.
//
// Invariant: every engine that is not handed out is closed.
package engines

import (
	"context"
	"errors"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/store/source"
)

// The values of --from that are no file.
const (
	FromAuto       = "auto"
	FromContainerd = "containerd"
	FromDocker     = source.Docker
	FromPodman     = source.Podman
	FromStdin      = "-"
)

// Image is an image of Docker or Podman.
type Image struct {
	source.Image
	Engine *source.Engine
}

// ErrNone is why nothing was found where there is neither Docker nor Podman.
var ErrNone = errors.New("no API socket of Docker or Podman was found on this host (Podman: systemctl enable --now podman.socket; elsewhere: DOCKER_HOST=unix:///…)")

// Find is the newest image under ref of the engines of a kind. docker stands for
// Podman, too, where there is no Docker, as for most people who use Podman.
func Find(ctx context.Context, env *cli.Env, ref, kind string) (found Image, err error) {
	engines, errs := open(ctx, env, kind)
	defer func() {
		for _, e := range engines {
			if e != found.Engine {
				err = errors.Join(err, e.Close())
			}
		}
	}()
	for _, e := range engines {
		img, err := e.Find(ctx, ref)
		switch {
		case err != nil:
			errs = append(errs, err.Error())
		case found.Engine == nil || img.Created.After(found.Created):
			found = Image{img, e}
		}
	}
	if found.Engine == nil && len(engines) == 0 && kind == FromAuto && len(errs) == 1 && errs[0] == ErrNone.Error() {
		return found, ErrNone
	}
	if found.Engine == nil {
		return found, errors.New(strings.Join(errs, "; "))
	}
	return found, nil
}

// open are those of this host that --from means, and why others are not there.
func open(ctx context.Context, env *cli.Env, kind string) (engines []*source.Engine, errs []string) {
	for _, host := range source.Hosts(env.LookupEnv) {
		e, err := source.Open(ctx, host)
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		engines = append(engines, e)
	}
	isDocker := func(e *source.Engine) bool { return e.Kind == FromDocker }
	if kind == FromPodman || kind == FromDocker && slices.ContainsFunc(engines, isDocker) {
		engines = slices.DeleteFunc(engines, func(e *source.Engine) bool {
			if e.Kind != kind {
				e.Close()
			}
			return e.Kind != kind
		})
	}
	if len(engines) == 0 && len(errs) == 0 {
		what := "Docker or Podman"
		if kind == FromPodman {
			what = "Podman"
		}
		errs = append(errs, "no API socket of "+what+" was found on this host (Podman: systemctl enable --now podman.socket; elsewhere: DOCKER_HOST=unix:///…)")
	}
	return engines, errs
}
