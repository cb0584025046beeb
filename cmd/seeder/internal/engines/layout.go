package engines

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"seeder/cmd/seeder/internal/cli"
)

const layoutFile = "oci-layout"

// IsLayout reports whether path is a directory with an OCI layout.
func IsLayout(path string) bool {
	info, err := os.Stat(filepath.Join(path, layoutFile))
	return err == nil && info.Mode().IsRegular()
}

// openLayout reads a directory with an OCI layout as the archive that tar would make of
// it. Other directories are refused with what they are.
func openLayout(dir string) (Origin, error) {
	if !IsLayout(dir) {
		return Origin{}, cli.Usagef("--from %s: %w", dir, notLayout(dir))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Origin{}, cli.Usagef("--from %s: %w", dir, err)
	}
	files, bytes, err := layoutFiles(root.FS())
	if err != nil {
		return Origin{}, errors.Join(cli.Usagef("--from %s: %w", dir, err), root.Close())
	}
	pr, pw := io.Pipe()
	l := &layoutReader{PipeReader: pr, root: root, done: make(chan struct{})}
	go func() { // ends with the last file, or when the reader is closed, which waits for it
		defer close(l.done)
		pw.CloseWithError(writeTar(pw, root, files))
	}()
	return Origin{Name: "archive", Archive: l, Bytes: bytes}, nil
}

// layoutReader reads the archive of a directory.
type layoutReader struct {
	*io.PipeReader
	root *os.Root
	done chan struct{}
}

// Close implements io.Closer.
func (l *layoutReader) Close() error {
	err := l.PipeReader.Close()
	<-l.done
	return errors.Join(err, l.root.Close())
}

// layoutFiles are the files of an OCI layout, and the size of a tar file of them.
func layoutFiles(dir fs.FS) (names []string, bytes int64, err error) {
	add := func(name string, info fs.FileInfo) {
		names = append(names, name)
		bytes += 512 + (info.Size()+511)/512*512
	}
	for _, name := range []string{layoutFile, "index.json"} {
		info, err := fs.Stat(dir, name)
		if err != nil {
			return nil, 0, fmt.Errorf("read the OCI layout: %w", err)
		}
		add(name, info)
	}
	err = fs.WalkDir(dir, "blobs", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := fs.Stat(dir, name) // of what a link points to
		if err == nil && info.Mode().IsRegular() {
			add(name, info)
		}
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read the OCI layout: %w", err)
	}
	return names, bytes + 1024, nil
}

func writeTar(w io.Writer, root *os.Root, names []string) error {
	out := tar.NewWriter(w)
	for _, name := range names {
		if err := writeEntry(out, root, name); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeEntry(out *tar.Writer, root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: info.Size(), Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := io.CopyN(out, f, info.Size()); err != nil {
		return fmt.Errorf("%s has changed while it was read: %w", name, err)
	}
	return nil
}

// notLayout says what a directory is that is not an OCI layout.
func notLayout(dir string) error {
	if version, err := os.ReadFile(filepath.Join(dir, "version")); err == nil && strings.HasPrefix(string(version), "Directory Transport Version") {
		return errors.New("it has the format dir: of skopeo and podman; copy the image to docker-archive:FILE or oci-archive:FILE instead")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.IsDir() && IsLayout(filepath.Join(dir, e.Name())):
			return fmt.Errorf("the OCI layout is in %s: seeder announce --from %s", e.Name(), path.Join(filepath.ToSlash(dir), e.Name()))
		case e.Name() == "manifest.json":
			return fmt.Errorf("it is an unpacked archive; pack it: tar -C %s -c . | seeder announce --from -", dir)
		}
	}
	return errors.New("a directory without an OCI layout (it has no file oci-layout); want a docker-archive or OCI-layout tar file, or the directory of an OCI layout")
}
