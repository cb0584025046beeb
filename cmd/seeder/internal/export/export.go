//go:build linux

// Package export is `seeder export`: an image of this host gets into a file, for a cluster
// that has no connection to this one.
//
// It owns what the command says and where the file is. It never makes the archive: the
// daemon does.
//
// Invariant: the file has its name only when all of it is written.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
)

const help = `Write an image of this host's containerd to a file, for a cluster that has no connection to
this one: carry FILE there and run ` + "`seeder announce --from FILE`" + ` on one of its hosts. The image
need not be announced here.

Without --since, FILE is an OCI image layout as a tar, which other tools read, too
(` + "`k3s ctr images import`" + `, skopeo). It has the image's name, and the layers as they are in
containerd.

With --since, FILE has only what changed since an earlier build that the other cluster has.
Layers that build has are left out, and of layers that changed the difference is sent where
that pays. The host that announces FILE must have the earlier build in its containerd.
It rebuilds the layers and verifies each by its digest. If something is missing there,
nothing is imported, and the command says what. Other tools refuse such a file.

The earlier build must be on this host, too. images.keep_previous keeps builds that were
announced here before; ` + "`seeder images REF`" + ` shows the digest of the build that a cluster has.
REF@sha256:DIGEST exports such a build.

The same image gives the same FILE, byte for byte, with the same version of seeder. FILE
appears under its name when all of it is written; Ctrl-C leaves nothing.`

// flags are those of `seeder export`.
type flags struct{ since, platform, out string }

// Command is `seeder export`; local completes the references of this host's images, at most
// so many.
func Command(env *cli.Env, local func(most int) cobra.CompletionFunc) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export REF -o FILE [--since REF@DIGEST]",
		Short: "Write an image to a file, for a cluster without a connection",
		Long:  help,
		Example: `  seeder export k3s-dashboard:latest -o dashboard.tar
  seeder export app:v2 --since app:v1 -o app-v2.tar
  seeder export app:latest --since app:latest@sha256:DIGEST -o - | ssh other seeder announce --from -
  seeder export app:v1 --platform linux/arm64 -o app-arm64.tar`,
		Args: cli.ArgCount(1, 1, "one reference"),
	}
	control.Flags(env, cmd)
	var f flags
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "the `file` to write; - is standard output")
	cmd.Flags().StringVar(&f.since, "since", "", "write only what changed since this `build` (REF or REF@sha256:DIGEST), which the other cluster has")
	cmd.Flags().StringVar(&f.platform, "platform", "", "of an index, only the blobs of this `platform`, e.g. linux/arm64")
	cmd.ValidArgsFunction = local(1)
	cli.CompleteWords(cmd, "output", true)
	cli.CompleteWords(cmd, "platform", false)
	_ = cmd.RegisterFlagCompletionFunc("since", local(0))
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), env, args[0]) }
	return cmd
}

func (f *flags) run(ctx context.Context, env *cli.Env, ref string) error {
	t, err := cli.ParseTyped(ref)
	if err != nil {
		return err
	}
	o := control.ExportOrder{Ref: t.Ref, At: t.At, Platform: f.platform}
	if f.since != "" {
		since, err := cli.ParseTyped(f.since)
		if err != nil {
			return cli.Usagef("--since: %w", err)
		}
		o.Since, o.SinceAt = since.Ref, since.At
	}
	switch {
	case f.out == "":
		return cli.Usagef("where to? seeder export %s -o FILE, or -o - for standard output", ref)
	case f.out == "-" && term.IsTerminal(env.Stdout):
		return cli.Usagef("-o - writes the archive to standard output, which is a terminal: seeder export %s -o FILE", ref)
	}
	c, err := control.NewClient(env)
	if err != nil {
		return err
	}
	if f.out == "-" {
		e, err := fetch(ctx, c, o, env.Stdout)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(env.Stderr, told(e))
		return err
	}
	file, err := cli.CreateFile(f.out) // before the daemon makes deltas, which may take minutes
	if err != nil {
		return err
	}
	e, err := fetch(ctx, c, o, file)
	if errors.Is(err, errEnded) {
		err = cli.WithCode(cli.ExitFailed, fmt.Errorf("%w; no file is left", err))
	}
	if err != nil {
		return errors.Join(err, file.Drop())
	}
	if err := file.Finish(); err != nil {
		return err
	}
	said := env.Stdout
	if file.InPlace {
		said = env.Stderr // -o /dev/stdout
	}
	_, err = fmt.Fprintln(said, told(e))
	return err
}

// errEnded says that the user did not wait for the end.
var errEnded = errors.New("ended before the archive was whole")

// fetch writes an archive to w.
func fetch(ctx context.Context, c *control.Client, o control.ExportOrder, w io.Writer) (e control.Exported, err error) {
	err = c.Export(ctx, o, func(sum control.Exported) (io.Writer, error) {
		e = sum
		return w, nil
	})
	if err != nil && ctx.Err() != nil {
		err = cli.WithCode(cli.ExitFailed, errEnded)
	}
	return e, err
}

// told says what an archive has.
func told(e control.Exported) string {
	s := fmt.Sprintf("%s: exported %s, %s", cli.ShortRef(e.Reference), e.Digest, term.Bytes(e.Bytes))
	if e.Since == "" {
		return s
	}
	s += fmt.Sprintf(" instead of %s; %s of %s left out", term.Bytes(e.Bytes-e.DeltaBytes+e.RebuiltBytes+e.LeftOutBytes), term.Plural(e.LeftOut, "blob"), cli.ShortDigest(e.Since.String()))
	if e.Deltas > 0 {
		s += fmt.Sprintf(", %s as the difference (%s for %s)", term.Plural(e.Deltas, "layer"), term.Bytes(e.DeltaBytes), term.Bytes(e.RebuiltBytes))
	}
	return s
}
