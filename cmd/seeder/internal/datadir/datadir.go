// Package datadir opens the directory in which a daemon keeps everything.
//
// It owns the lock that keeps a second daemon out, and the schema that keeps an older
// seeder out of what a newer one wrote. It never looks into the files of the parts, each of
// which says for itself whether it can be believed.
//
// Invariant: one daemon at a time has a directory, and the schema of a newer seeder is never
// overwritten.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/disk"
)

// schema numbers the layout of data_dir. It goes up when an older seeder must not
// use what this one writes; the file that has it stays a number and a newline.
const schema = 1

const schemaFile = "schema"

// Open makes dir, keeps a second daemon and newer layouts out of it, and removes what a
// killed daemon left half written. The directory is locked until unlock is called.
func Open(dir string, log *slog.Logger) (unlock func() error, err error) {
	unlock, err = lock(dir)
	if err != nil {
		return nil, err
	}
	if err := prepare(dir, log); err != nil {
		return nil, errors.Join(fmt.Errorf("data_dir %s: %w", dir, err), unlock())
	}
	return unlock, nil
}

// prepare makes dir ready for this version.
func prepare(dir string, log *slog.Logger) error {
	if err := disk.RemoveUnfinished(dir); err != nil {
		return fmt.Errorf("remove unfinished files: %w", err)
	}
	found, err := readSchema(filepath.Join(dir, schemaFile))
	switch {
	case errors.Is(err, disk.ErrDamaged): // each file says for itself whether it can be believed
		log.Warn("the schema file of data_dir was damaged; wrote it again", "path", filepath.Join(dir, schemaFile), "err", err)
	case err != nil:
		return err
	case found > schema:
		return fmt.Errorf("schema %d was written by a newer seeder; this one (%s) knows schemas up to %d: install the newer version again, or set data_dir to an empty directory (the node gets a new id and fetches its images again)", found, cli.Version(), schema)
	case found == schema:
		return nil
	}
	if err := disk.WriteFile(filepath.Join(dir, schemaFile), fmt.Appendln(nil, schema)); err != nil {
		return fmt.Errorf("write its schema: %w", err)
	}
	return nil
}

// readSchema is 0 where there is none: what was written before there were schemas.
func readSchema(path string) (int, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", disk.ErrDamaged, err)
	}
	n, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%w: invalid schema %q", disk.ErrDamaged, b)
	}
	return n, nil
}

// lock makes dir and keeps a second daemon out of it.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir %s: %w; set data_dir to a directory that the daemon may write to", dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			return nil, fmt.Errorf("data_dir %s is not writable: %w; make it so, or set data_dir to a directory that is", dir, err)
		}
		return nil, fmt.Errorf("data_dir %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data_dir %s: another seeder daemon uses it; stop that one, or give this one its own data_dir", dir)
	}
	return func() error {
		// To close is not enough: a child process that was forked a moment ago has a copy of
		// the descriptor until it executes its program, and a copy keeps the lock.
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		return errors.Join(err, f.Close())
	}, nil
}
