package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"seeder/store"
	"seeder/store/source"
)

// The values of --from that are no file.
const (
	fromAuto       = "auto"
	fromContainerd = "containerd"
	fromDocker     = source.Docker
	fromPodman     = source.Podman
	fromStdin      = "-"
)

// origin is where an image comes from.
type origin struct {
	name    string        // containerd, docker, podman, archive
	why     string        // "" where nothing is to be said of it
	archive io.ReadCloser // nil: containerd has it
	bytes   int64         // of archive; 0: not known
}

// origin finds the image. The daemon's sandbox sees neither the user's files nor
// their Docker, so that both are read here.
func (a *app) origin(ctx context.Context, c *client, t typed, flags announcing) (origin, error) {
	switch {
	case flags.rollback, t.at != "", flags.from == fromContainerd:
		return origin{name: fromContainerd}, nil
	case flags.from == fromAuto:
		return a.chooseOrigin(ctx, c, t)
	case flags.from == fromDocker, flags.from == fromPodman:
		img, err := a.inEngines(ctx, t.ref, flags.from)
		if err != nil {
			return origin{}, err
		}
		return fromEngine(ctx, img, "")
	case flags.from == fromStdin:
		if isTerminal(a.stdin) {
			return origin{}, usagef("--from - reads the archive from standard input, which is a terminal: docker save IMAGE | seeder announce --from -")
		}
		return origin{name: "archive", archive: io.NopCloser(a.stdin)}, nil
	}
	return openArchive(flags.from)
}

func fromEngine(ctx context.Context, img source.Image, why string) (origin, error) {
	r, err := img.Open(ctx)
	if err != nil {
		return origin{}, err
	}
	return origin{name: img.Engine.Kind, why: why, archive: r}, nil
}

// chooseOrigin is containerd, unless it lacks the image or Docker or Podman have
// another build that is newer.
func (a *app) chooseOrigin(ctx context.Context, c *client, t typed) (origin, error) {
	var local store.Local
	localErr := c.get(ctx, "/v1/local", url.Values{"ref": {t.ref}}, &local)
	if localErr != nil && !errors.Is(localErr, fs.ErrNotExist) {
		return origin{}, localErr
	}
	img, err := a.inEngines(ctx, t.ref, fromAuto)
	if localErr != nil {
		if err != nil {
			return origin{}, fmt.Errorf("%w; %w", localErr, err)
		}
		return fromEngine(ctx, img, fmt.Sprintf("%s comes from %s: containerd does not have it", shortRef(t.ref), img.Engine.Kind))
	}
	if err != nil || slices.Contains(local.IDs, img.ID) {
		return origin{name: fromContainerd}, nil
	}
	theirs, kind := fmt.Sprintf("%s has another build, %s%s", img.Engine.Kind, shortDigest(img.ID.String()), of(img.Created)), img.Engine.Kind
	ours := fmt.Sprintf("containerd's %s%s", shortDigest(local.Digest.String()), of(local.Created))
	if img.Created.After(local.Created) {
		return fromEngine(ctx, img, fmt.Sprintf("%s comes from %s: its build %s%s is newer than %s; --from containerd takes that one",
			shortRef(t.ref), kind, shortDigest(img.ID.String()), of(img.Created), ours))
	}
	return origin{name: fromContainerd, why: fmt.Sprintf("%s comes from containerd: %s is not older; %s (--from %s takes it)", shortRef(t.ref), ours, theirs, kind)}, nil
}

func of(t time.Time) string {
	if t.Unix() <= 0 { // builds that are to be repeated exactly have no date
		return ""
	}
	return " of " + t.Local().Format(time.DateTime)
}

// inEngines is the newest image of the engines of a kind under ref. docker is Podman
// where there is no Docker, as for most people who use Podman.
func (a *app) inEngines(ctx context.Context, ref, kind string) (source.Image, error) {
	engines := source.Engines(a.lookupEnv)
	is := func(kind string) func(source.Engine) bool {
		return func(e source.Engine) bool { return e.Kind == kind }
	}
	switch {
	case kind == fromPodman, kind == fromDocker && slices.ContainsFunc(engines, is(fromDocker)):
		engines = slices.DeleteFunc(engines, func(e source.Engine) bool { return e.Kind != kind })
	}
	if len(engines) == 0 {
		what := map[string]string{fromPodman: "Podman"}[kind]
		if what == "" {
			what = "Docker or Podman"
		}
		return source.Image{}, fmt.Errorf("no %s was found on this host (its API socket: systemctl start podman.socket, or DOCKER_HOST=unix:///…)", what)
	}
	var found source.Image
	var errs []string
	for _, e := range engines {
		img, err := e.Find(ctx, ref)
		switch {
		case err != nil:
			errs = append(errs, err.Error())
		case found.Name == "" || img.Created.After(found.Created):
			found = img
		}
	}
	if found.Name == "" {
		return found, fmt.Errorf("%s", strings.Join(errs, "; "))
	}
	return found, nil
}

// openArchive opens a file that --from names.
func openArchive(path string) (origin, error) {
	f, err := os.Open(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return origin{}, usagef("--from %s: %w; want auto, containerd, docker, podman, an archive file, or - for standard input", path, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular() && info.Mode()&fs.ModeNamedPipe == 0:
		err = errors.New("not a file; want a docker-archive or OCI-layout tar file")
	case info.Mode().IsRegular() && info.Size() == 0:
		err = errors.New("the file is empty; want a docker-archive or OCI-layout tar file")
	}
	if err != nil {
		f.Close()
		return origin{}, usagef("--from %s: %w", path, err)
	}
	return origin{name: "archive", archive: f, bytes: info.Size()}, nil
}
