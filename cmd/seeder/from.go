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

	"github.com/distribution/reference"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
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
func findOrigin(ctx context.Context, env *cli.Env, c *control.Client, t typed, flags announcing) (origin, error) {
	switch {
	case flags.rollback, t.at != "", flags.from == fromContainerd:
		return origin{name: fromContainerd}, nil
	case flags.from == fromAuto:
		return chooseOrigin(ctx, env, c, t)
	case flags.from == fromDocker, flags.from == fromPodman:
		img, err := inEngines(ctx, env, t.ref, flags.from)
		if err != nil {
			return origin{}, err
		}
		return img.take(ctx, "")
	case flags.from == fromStdin:
		if term.IsTerminal(env.Stdin) {
			return origin{}, cli.Usagef("--from - reads the archive from standard input, which is a terminal: docker save IMAGE | seeder announce --from -")
		}
		return origin{name: "archive", archive: io.NopCloser(env.Stdin)}, nil
	}
	return openArchive(flags.from)
}

// inEngine is an image of Docker or Podman.
type inEngine struct {
	source.Image
	engine *source.Engine
}

// take makes the image the origin. The engine is closed with its stream.
func (i inEngine) take(ctx context.Context, why string) (origin, error) {
	r, err := i.engine.Save(ctx, i.Image)
	if err != nil {
		return origin{}, errors.Join(err, i.engine.Close())
	}
	return origin{name: i.engine.Kind, why: why, archive: closeBoth{r, i.engine}}, nil
}

// closeBoth closes what was opened for a reader with it.
type closeBoth struct {
	io.ReadCloser
	with io.Closer
}

func (c closeBoth) Close() error { return errors.Join(c.ReadCloser.Close(), c.with.Close()) }

// chooseOrigin is containerd, unless it lacks the image or Docker or Podman have
// another build that is newer.
func chooseOrigin(ctx context.Context, env *cli.Env, c *control.Client, t typed) (origin, error) {
	var local store.Local
	localErr := c.Get(ctx, "/v1/local", url.Values{"ref": {t.ref}}, &local)
	if localErr != nil && !errors.Is(localErr, fs.ErrNotExist) {
		return origin{}, localErr
	}
	img, err := inEngines(ctx, env, t.ref, fromAuto)
	if localErr != nil {
		if err != nil {
			return origin{}, fmt.Errorf("%w; %w", localErr, err)
		}
		return img.take(ctx, fmt.Sprintf("%s comes from %s: containerd does not have it", cli.ShortRef(t.ref), img.engine.Kind))
	}
	if err != nil {
		return origin{name: fromContainerd}, nil
	}
	if slices.Contains(local.IDs, img.ID) {
		return origin{name: fromContainerd}, img.engine.Close()
	}
	kind := img.engine.Kind
	theirs := cli.ShortDigest(img.ID.String()) + of(img.Created)
	ours := cli.ShortDigest(local.Digest.String()) + of(local.Created)
	if img.Created.After(local.Created) {
		return img.take(ctx, fmt.Sprintf("%s comes from %s: its build %s is newer than containerd's %s; --from containerd takes that one",
			cli.ShortRef(t.ref), kind, theirs, ours))
	}
	return origin{name: fromContainerd, why: fmt.Sprintf("%s comes from containerd: its build %s is not older than %s's %s; --from %s takes that one",
		cli.ShortRef(t.ref), ours, kind, theirs, kind)}, img.engine.Close()
}

func of(t time.Time) string {
	if t.Unix() <= 0 { // builds that are to be repeated exactly have no date
		return ""
	}
	return " of " + t.Local().Format(time.DateTime)
}

// inEngines is the newest image under ref of the engines of a kind. docker stands for
// Podman, too, where there is no Docker, as for most people who use Podman.
func inEngines(ctx context.Context, env *cli.Env, ref, kind string) (found inEngine, err error) {
	engines, errs := engines(ctx, env, kind)
	defer func() {
		for _, e := range engines {
			if e != found.engine {
				err = errors.Join(err, e.Close())
			}
		}
	}()
	for _, e := range engines {
		img, err := e.Find(ctx, ref)
		switch {
		case err != nil:
			errs = append(errs, err.Error())
		case found.engine == nil || img.Created.After(found.Created):
			found = inEngine{img, e}
		}
	}
	if found.engine == nil {
		return found, errors.New(strings.Join(errs, "; "))
	}
	return found, nil
}

// engines are those of this host that --from means, and why others are not there.
func engines(ctx context.Context, env *cli.Env, kind string) (engines []*source.Engine, errs []string) {
	for _, host := range source.Hosts(env.LookupEnv) {
		e, err := source.Open(ctx, host)
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		engines = append(engines, e)
	}
	isDocker := func(e *source.Engine) bool { return e.Kind == fromDocker }
	if kind == fromPodman || kind == fromDocker && slices.ContainsFunc(engines, isDocker) {
		engines = slices.DeleteFunc(engines, func(e *source.Engine) bool {
			if e.Kind != kind {
				e.Close()
			}
			return e.Kind != kind
		})
	}
	if len(engines) == 0 && len(errs) == 0 {
		what := "Docker or Podman"
		if kind == fromPodman {
			what = "Podman"
		}
		errs = append(errs, "no API socket of "+what+" was found on this host (Podman: systemctl enable --now podman.socket; elsewhere: DOCKER_HOST=unix:///…)")
	}
	return engines, errs
}

// openArchive opens a file that --from names.
func openArchive(path string) (origin, error) {
	f, err := os.Open(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return origin{}, cli.Usagef("--from %s: %w; want auto, containerd, docker, podman, an archive file, or - for standard input", path, err)
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
		return origin{}, cli.Usagef("--from %s: %w", path, err)
	}
	return origin{name: "archive", archive: f, bytes: info.Size()}, nil
}

// parseTyped reads NAME[:TAG][@DIGEST]. A digest behind a tag stays apart from it:
// the tag shall stand for it.
func parseTyped(text string) (typed, error) {
	t := typed{text: text}
	named, err := reference.ParseNormalizedNamed(text)
	if err == nil {
		if digested, ok := named.(reference.Digested); ok {
			t.at = digested.Digest()
			if tagged, ok := named.(reference.Tagged); ok {
				text = reference.TrimNamed(named).Name() + ":" + tagged.Tag()
			}
		}
	}
	t.ref, err = cli.NormalizeRef(text)
	return t, err
}
