// Package disk writes the files of data_dir so that a crash at any instant leaves the old
// file or the new one. It also opens a database that may have been damaged since.
//
// It owns the order of write, sync and rename, and knows nothing of what is in the files. It
// reports damage before anybody believes what is in them.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrDamaged is wrapped by errors about a file whose content cannot be read.
var ErrDamaged = errors.New("damaged")

// unfinished begins the name of a file that is being written.
const unfinished = ".unfinished-"

// WriteFile puts b at path (mode 0600), in the place of what is there. After a
// crash, also of the machine, the old file is there or the new one; after its
// return the new one.
func WriteFile(path string, b []byte) error {
	return place(path, b, os.Rename)
}

// CreateFile is WriteFile where nothing is at path; the error wraps fs.ErrExist
// otherwise. Of two that do it at once one wins.
func CreateFile(path string, b []byte) error {
	return place(path, b, os.Link)
}

// place writes a file beside path, syncs it, moves it to its name and syncs that.
// Without the first sync the name could outlive the content in a power cut,
// without the second one the content the name.
func place(path string, b []byte, move func(from, to string) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), unfinished+"*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if rm := os.Remove(tmp.Name()); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, rm)
		}
	}()
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := move(tmp.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RemoveUnfinished removes what a process that was killed left half written in
// dir. Nobody else may be writing there.
func RemoveUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// SetAside moves what is damaged out of the way, for people to look at, and says
// where it is now. What was set aside before is removed: only the last is kept.
func SetAside(path string) (aside string, err error) {
	aside = path + ".damaged"
	if err := os.RemoveAll(aside); err != nil {
		return "", fmt.Errorf("remove what was set aside before: %w", err)
	}
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set the damaged file aside: %w", err)
	}
	return aside, SyncDir(filepath.Dir(path))
}
