package push

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/term"
)

// source is where one or several images come from.
type source struct {
	from string // as --from has it: auto, docker, podman, a path or -
	ref  string // normalised; "" for all images of an archive
}

func (s source) name() string {
	if s.ref == "" {
		return s.from
	}
	return cli.ShortRef(s.ref)
}

// sources are what the arguments mean.
func (f *flags) sources(env *cli.Env, images []string) (out []source, err error) {
	engine := f.from == engines.FromAuto || f.from == engines.FromDocker || f.from == engines.FromPodman
	switch {
	case engine && len(images) == 0:
		return nil, cli.Usagef("which image? seeder push HOST IMAGE, or seeder push HOST --from FILE")
	case f.from == engines.FromContainerd:
		return nil, cli.Usagef("--from containerd is not for a push; on the host that has the image: seeder announce REF")
	case f.from == engines.FromStdin && len(images) > 1:
		return nil, cli.Usagef("--from - is read once: push one image of it, or all by naming none")
	case f.from == engines.FromStdin && term.IsTerminal(env.Stdin):
		return nil, cli.Usagef("--from - reads the archive from standard input, which is a terminal: docker save IMAGE | seeder push HOST --from -")
	case !engine && len(images) == 0:
		return []source{{from: f.from}}, nil
	}
	for _, image := range images {
		if info, err := os.Stat(image); f.from == engines.FromAuto && err == nil && (info.Mode().IsRegular() || engines.IsLayout(image)) {
			out = append(out, source{from: image})
			continue
		}
		ref, err := cli.NormalizeRef(image)
		if err != nil {
			return nil, err
		}
		out = append(out, source{f.from, ref})
	}
	return out, nil
}

// open begins to read the images. The reader is the caller's to close.
func (s source) open(ctx context.Context, env *cli.Env) (engines.Origin, error) {
	switch s.from {
	case engines.FromAuto, engines.FromDocker, engines.FromPodman:
	case engines.FromStdin:
		return engines.Origin{Name: "archive", Archive: io.NopCloser(env.Stdin)}, nil
	default:
		return engines.OpenArchive(s.from)
	}
	img, err := engines.Find(ctx, env, s.ref, s.from)
	if err == nil {
		return img.Open(ctx)
	}
	// The command line knows engines in a virtual machine, or behind a context.
	for _, program := range []string{engines.FromDocker, engines.FromPodman} {
		if s.from != engines.FromAuto && s.from != program {
			continue
		}
		if _, lerr := exec.LookPath(program); lerr != nil {
			continue
		}
		o, serr := saved(ctx, program, s.ref)
		if serr == nil {
			return o, nil
		}
		err = fmt.Errorf("%w; %w", err, serr)
	}
	return engines.Origin{}, err
}

// saved is what `docker save` or `podman save` writes, if the program knows the image.
func saved(ctx context.Context, program, ref string) (engines.Origin, error) {
	name := cli.ShortRef(ref)
	if out, err := exec.CommandContext(ctx, program, "image", "inspect", "--format", "{{.Id}}", name).CombinedOutput(); err != nil {
		return engines.Origin{}, fmt.Errorf("%s image inspect %s: %w: %.300s", program, name, err, out)
	}
	cmd := exec.CommandContext(ctx, program, "save", name)
	stderr := new(tail)
	cmd.Stderr, cmd.WaitDelay = stderr, closeGrace
	out, err := cmd.StdoutPipe()
	if err != nil {
		return engines.Origin{}, fmt.Errorf("%s save %s: %w", program, name, err)
	}
	if err := cmd.Start(); err != nil {
		return engines.Origin{}, fmt.Errorf("%s save %s: %w", program, name, err)
	}
	return engines.Origin{Name: program, Archive: &process{out, cmd, stderr, program + " save " + name}}, nil
}

// process reads what a program writes. Close waits for its end.
type process struct {
	io.ReadCloser
	cmd    *exec.Cmd
	stderr *tail
	what   string
}

// Close implements io.Closer. A program that is cut off has no error to tell.
func (p *process) Close() error {
	n, _ := p.Read(make([]byte, 1))
	p.ReadCloser.Close()
	if err := p.cmd.Wait(); err != nil && n == 0 {
		return fmt.Errorf("%s: %w: %s", p.what, err, p.stderr.String())
	}
	return nil
}
