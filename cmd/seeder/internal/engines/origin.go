package engines

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"seeder/cmd/seeder/internal/cli"
)

// Origin is where an image comes from.
type Origin struct {
	Name    string        // containerd, docker, podman, archive
	Why     string        // "" where nothing is to be said of it
	Archive io.ReadCloser // nil: containerd has it
	Bytes   int64         // of archive; 0: not known
}

// Open reads the image. Its engine is closed with the archive, or where there is none.
func (i Image) Open(ctx context.Context) (Origin, error) {
	r, err := i.Engine.Save(ctx, i.Image)
	if err != nil {
		return Origin{}, errors.Join(err, i.Engine.Close())
	}
	return Origin{Name: i.Engine.Kind, Archive: closeBoth{r, i.Engine}}, nil
}

// closeBoth closes what was opened for a reader with it.
type closeBoth struct {
	io.ReadCloser
	with io.Closer
}

// Close implements io.Closer.
func (c closeBoth) Close() error { return errors.Join(c.ReadCloser.Close(), c.with.Close()) }

// OpenArchive opens a file or directory that --from names.
func OpenArchive(path string) (Origin, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return openLayout(path)
	}
	f, err := os.Open(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return Origin{}, cli.Usagef("--from %s: %w; want auto, containerd, docker, podman, an archive file, the directory of an OCI layout, or - for standard input", path, err)
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
		return Origin{}, cli.Usagef("--from %s: %w", path, err)
	}
	return Origin{Name: "archive", Archive: f, Bytes: info.Size()}, nil
}
