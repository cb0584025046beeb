//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"slices"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/term"
)

// findOrigins finds the images. Several are announced together where containerd has them
// all.
func findOrigins(ctx context.Context, env *cli.Env, c *control.Client, images []cli.Typed, flags announcing) (engines.Origin, error) {
	if len(images) == 1 {
		return findOrigin(ctx, env, c, images[0], flags)
	}
	for _, t := range images {
		src, err := findOrigin(ctx, env, c, t, flags)
		if err != nil {
			return src, err
		}
		if src.Archive != nil {
			return engines.Origin{}, errors.Join(src.Archive.Close(), cli.Usagef(
				"%[1]s: announce it alone, or all of them from there: %[2]s save REF... | seeder announce --from -", src.Why, src.Name))
		}
	}
	return engines.Origin{Name: engines.FromContainerd}, nil
}

// findOrigin finds the image. The daemon's sandbox sees neither the user's files nor
// their Docker, so that both are read here.
func findOrigin(ctx context.Context, env *cli.Env, c *control.Client, t cli.Typed, flags announcing) (engines.Origin, error) {
	switch {
	case flags.rollback, t.At != "", flags.from == engines.FromContainerd:
		return engines.Origin{Name: engines.FromContainerd}, nil
	case flags.from == engines.FromAuto:
		return chooseOrigin(ctx, env, c, t)
	case flags.from == engines.FromDocker, flags.from == engines.FromPodman:
		img, err := engines.Find(ctx, env, t.Ref, flags.from)
		if err != nil {
			return engines.Origin{}, err
		}
		return img.Open(ctx)
	case flags.from == engines.FromStdin:
		if term.IsTerminal(env.Stdin) {
			return engines.Origin{}, cli.Usagef("--from - reads the archive from standard input, which is a terminal: docker save IMAGE | seeder announce --from -")
		}
		return engines.Origin{Name: "archive", Archive: io.NopCloser(env.Stdin)}, nil
	}
	return engines.OpenArchive(flags.from)
}

// take makes the image the origin, and says why.
func take(ctx context.Context, i engines.Image, why string) (engines.Origin, error) {
	o, err := i.Open(ctx)
	o.Why = why
	return o, err
}

// chooseOrigin is containerd, unless it lacks the image or Docker or Podman have
// another build that is newer.
func chooseOrigin(ctx context.Context, env *cli.Env, c *control.Client, t cli.Typed) (engines.Origin, error) {
	img, err := engines.Find(ctx, env, t.Ref, engines.FromAuto)
	if errors.Is(err, engines.ErrNone) { // there is nothing to choose: the daemon says what it lacks
		return engines.Origin{Name: engines.FromContainerd}, nil
	}
	var local control.Local
	localErr := c.Get(ctx, "/v1/local", url.Values{"ref": {t.Ref}}, &local)
	switch {
	case localErr != nil && !errors.Is(localErr, fs.ErrNotExist):
		if err == nil {
			localErr = errors.Join(localErr, img.Engine.Close())
		}
		return engines.Origin{}, localErr
	case localErr != nil && err != nil:
		return engines.Origin{}, fmt.Errorf("%w; %w", localErr, err)
	case localErr != nil:
		return take(ctx, img, fmt.Sprintf("%s comes from %s: containerd does not have it", cli.ShortRef(t.Ref), img.Engine.Kind))
	}
	if err != nil {
		return engines.Origin{Name: engines.FromContainerd}, nil
	}
	if slices.Contains(local.IDs, img.ID) {
		return engines.Origin{Name: engines.FromContainerd}, img.Engine.Close()
	}
	kind := img.Engine.Kind
	theirs := cli.ShortDigest(img.ID.String()) + of(img.Created)
	ours := cli.ShortDigest(local.Digest.String()) + of(local.Created)
	if img.Created.After(local.Created) {
		return take(ctx, img, fmt.Sprintf("%s comes from %s: its build %s is newer than containerd's %s; --from containerd takes that one",
			cli.ShortRef(t.Ref), kind, theirs, ours))
	}
	return engines.Origin{Name: engines.FromContainerd, Why: fmt.Sprintf("%s comes from containerd: its build %s is not older than %s's %s; --from %s takes that one",
		cli.ShortRef(t.Ref), ours, kind, theirs, kind)}, img.Engine.Close()
}

func of(t time.Time) string {
	if t.Unix() <= 0 { // builds that are to be repeated exactly have no date
		return ""
	}
	return " of " + t.Local().Format(time.DateTime)
}
