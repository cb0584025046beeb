package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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

// openDataDir makes data_dir, keeps a second daemon and newer layouts out of it,
// and clears away what a killed one left half written.
func (d *running) openDataDir() error {
	if err := d.lockDataDir(); err != nil {
		return err
	}
	dir := d.cfg.DataDir
	if err := disk.RemoveUnfinished(dir); err != nil {
		return fmt.Errorf("data_dir %s: remove unfinished files: %w", dir, err)
	}
	found, err := readSchema(filepath.Join(dir, schemaFile))
	switch {
	case errors.Is(err, disk.ErrDamaged): // each file says for itself whether it can be believed
		d.log.Warn("the schema file of data_dir was damaged; wrote it again", "path", filepath.Join(dir, schemaFile), "err", err)
	case err != nil:
		return fmt.Errorf("data_dir %s: %w", dir, err)
	case found > schema:
		return fmt.Errorf("data_dir %s has schema %d, written by a newer seeder; this one (%s) knows schemas up to %d: install the newer version again, or set data_dir to an empty directory (the node gets a new id and fetches its images again)", dir, found, cli.Version(), schema)
	case found == schema:
		return nil
	}
	if err := disk.WriteFile(filepath.Join(dir, schemaFile), fmt.Appendln(nil, schema)); err != nil {
		return fmt.Errorf("data_dir %s: write its schema: %w", dir, err)
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

// lockDataDir makes data_dir and keeps a second daemon out of it.
func (d *running) lockDataDir() error {
	dir := d.cfg.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data_dir %s: %w; set data_dir to a directory that the daemon may write to", dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			return fmt.Errorf("data_dir %s is not writable: %w; make it so, or set data_dir to a directory that is", dir, err)
		}
		return fmt.Errorf("data_dir %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("data_dir %s: another seeder daemon uses it; stop that one, or give this one its own data_dir", dir)
	}
	d.opened("lock of data_dir", f.Close)
	return nil
}
