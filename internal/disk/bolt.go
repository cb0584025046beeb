package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ErrInUse is wrapped where another process has a database open.
var ErrInUse = errors.New("another process has it open")

// OpenBolt opens the bbolt database at path, or makes it with init in it, whole or
// not at all. A file that is there and is no database that bbolt wrote is
// ErrDamaged, also where bbolt itself would crash on it or never come back: it
// follows what is on its pages without looking, and a fault in its memory map
// ends the process. So the pages are checked here before bbolt sees them.
func OpenBolt(path string, init func(*bolt.Tx) error) (*bolt.DB, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createBolt(path, init); err != nil {
			return nil, fmt.Errorf("make database %s: %w", path, err)
		}
	}
	db, err := openBolt(path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return db, nil
}

func createBolt(path string, init func(*bolt.Tx) error) (err error) {
	tmp := filepath.Join(filepath.Dir(path), unfinished+filepath.Base(path))
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	db, err := bolt.Open(tmp, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(init), db.Close()); err != nil { // each syncs the file
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// openBolt opens a file that is there. It is locked from before it is checked
// until it is closed.
func openBolt(path string) (db *bolt.DB, err error) {
	// Anyone who owns the file may read it; others are told by the next step.
	_ = os.Chmod(path, 0o600)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("%w: a directory", ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err := checkPages(f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return openChecked(path, f)
}

// openChecked lets bbolt have a file whose pages were checked. bbolt checks the
// rest, which takes no more than the pages being what they seem: the order of the
// keys, and that what is free is not in use.
func openChecked(path string, f *os.File) (db *bolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	err = db.View(func(tx *bolt.Tx) error { return firstError(tx.Check()) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrDamaged, err), db.Close())
	}
	return db, nil
}

// firstError drains a channel of errors, as Tx.Check needs.
func firstError(errs <-chan error) (first error) {
	for err := range errs {
		if first == nil {
			first = err
		}
	}
	return first
}
