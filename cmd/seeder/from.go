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
	"time"

	"github.com/distribution/reference"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/term"
	"seeder/store"
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
	case flags.rollback, t.at != "", flags.from == engines.FromContainerd:
		return origin{name: engines.FromContainerd}, nil
	case flags.from == engines.FromAuto:
		return chooseOrigin(ctx, env, c, t)
	case flags.from == engines.FromDocker, flags.from == engines.FromPodman:
		img, err := engines.Find(ctx, env, t.ref, flags.from)
		if err != nil {
			return origin{}, err
		}
		return take(ctx, img, "")
	case flags.from == engines.FromStdin:
		if term.IsTerminal(env.Stdin) {
			return origin{}, cli.Usagef("--from - reads the archive from standard input, which is a terminal: docker save IMAGE | seeder announce --from -")
		}
		return origin{name: "archive", archive: io.NopCloser(env.Stdin)}, nil
	}
	return openArchive(flags.from)
}

// take makes the image the origin. The engine is closed with its stream.
func take(ctx context.Context, i engines.Image, why string) (origin, error) {
	r, err := i.Engine.Save(ctx, i.Image)
	if err != nil {
		return origin{}, errors.Join(err, i.Engine.Close())
	}
	return origin{name: i.Engine.Kind, why: why, archive: closeBoth{r, i.Engine}}, nil
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
	img, err := engines.Find(ctx, env, t.ref, engines.FromAuto)
	if localErr != nil {
		if errors.Is(err, engines.ErrNone) { // nothing to say of Docker and Podman where neither is
			return origin{}, localErr
		}
		if err != nil {
			return origin{}, fmt.Errorf("%w; %w", localErr, err)
		}
		return take(ctx, img, fmt.Sprintf("%s comes from %s: containerd does not have it", cli.ShortRef(t.ref), img.Engine.Kind))
	}
	if err != nil {
		return origin{name: engines.FromContainerd}, nil
	}
	if slices.Contains(local.IDs, img.ID) {
		return origin{name: engines.FromContainerd}, img.Engine.Close()
	}
	kind := img.Engine.Kind
	theirs := cli.ShortDigest(img.ID.String()) + of(img.Created)
	ours := cli.ShortDigest(local.Digest.String()) + of(local.Created)
	if img.Created.After(local.Created) {
		return take(ctx, img, fmt.Sprintf("%s comes from %s: its build %s is newer than containerd's %s; --from containerd takes that one",
			cli.ShortRef(t.ref), kind, theirs, ours))
	}
	return origin{name: engines.FromContainerd, why: fmt.Sprintf("%s comes from containerd: its build %s is not older than %s's %s; --from %s takes that one",
		cli.ShortRef(t.ref), ours, kind, theirs, kind)}, img.Engine.Close()
}

func of(t time.Time) string {
	if t.Unix() <= 0 { // builds that are to be repeated exactly have no date
		return ""
	}
	return " of " + t.Local().Format(time.DateTime)
}

// openArchive opens a file or directory that --from names.
func openArchive(path string) (origin, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return openLayout(path)
	}
	f, err := os.Open(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return origin{}, cli.Usagef("--from %s: %w; want auto, containerd, docker, podman, an archive file, the directory of an OCI layout, or - for standard input", path, err)
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
