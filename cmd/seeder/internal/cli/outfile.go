package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// OutFile is a file that a command writes. It gets its name when it is whole: until then it
// has another one in the same directory, and what was there before stays.
type OutFile struct {
	*os.File
	said    string // as CreateFile was told
	path    string // which it gets; "" where InPlace
	InPlace bool   // it is a pipe or a device, perhaps standard output
}

// Write implements io.Writer. Its error has the name that the user knows.
func (o *OutFile) Write(p []byte) (int, error) {
	n, err := o.File.Write(p)
	if err != nil {
		err = fmt.Errorf("write %s: %w", o.said, cause(err))
	}
	return n, err
}

// CreateFile begins to write the file at path. Only its owner can read it, since it may hold
// what is secret.
func CreateFile(path string) (*OutFile, error) {
	said := path
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil, Usagef("-o %s: is a directory; want a file, or - for standard output", path)
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, Usagef("-o %s: %w", path, cause(err))
		}
		return &OutFile{File: f, said: said, InPlace: true}, nil
	case err == nil: // of a link the file that it leads to
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, Usagef("-o %s: %w", path, cause(err))
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-")
	if err != nil {
		return nil, Usagef("-o %s: %w", path, cause(err))
	}
	return &OutFile{File: f, said: said, path: path}, nil
}

// Finish gives the file its name once all of it is on the disk.
func (o *OutFile) Finish() error {
	if o.InPlace {
		return o.Close()
	}
	if err := errors.Join(o.Sync(), o.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", o.path, err), os.Remove(o.Name()))
	}
	if err := os.Rename(o.Name(), o.path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", o.path, cause(err)), os.Remove(o.Name()))
	}
	return nil
}

// Drop removes what was written.
func (o *OutFile) Drop() error {
	err := o.Close()
	if !o.InPlace {
		err = errors.Join(err, os.Remove(o.Name()))
	}
	return err
}

// cause is an error of a file without the name of the file, which is said already.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
