package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/disk"
	"seeder/store/chunk"
)

// seedDir is the directory of the seed indexes that this host keeps: those of what is
// announced, one file each. What is read from it has the digest that was asked for.
type seedDir struct {
	dir string
	log *slog.Logger
}

// openSeeds makes the directory, and removes what a crash left unfinished there.
func openSeeds(dir string, log *slog.Logger) (*seedDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of seed indexes: %w", err)
	}
	if err := disk.RemoveUnfinished(dir); err != nil {
		return nil, fmt.Errorf("remove unfinished seed indexes: %w", err)
	}
	return &seedDir{dir, log}, nil
}

// youngIndex is how long a seed index is kept without an announcement that names
// it: announcing keeps it first.
const youngIndex = time.Minute

// keep writes a seed index where read finds it, unless it is there and
// undamaged. Either way it is young again: see Tidy.
func (s *seedDir) keep(d digest.Digest, b []byte) error {
	if _, err := s.read(d); err == nil {
		now := time.Now()
		if err := os.Chtimes(s.file(d), now, now); err != nil {
			return fmt.Errorf("keep seed index %s: %w", d, err)
		}
		return nil
	}
	if err := disk.WriteFile(s.file(d), b); err != nil {
		return fmt.Errorf("keep seed index %s: %w", d, err)
	}
	return nil
}

// file is the path of a seed index.
func (s *seedDir) file(d digest.Digest) string {
	return filepath.Join(s.dir, d.Encoded()+".json")
}

// read returns a seed index that this host keeps. One that is damaged is
// removed. The error wraps fs.ErrNotExist where there is none.
func (s *seedDir) read(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("seed index %q: %w", d, err)
	}
	f, err := os.Open(s.file(d))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, chunk.MaxIndexBytes+1))
	if err != nil || digest.FromBytes(b) != d {
		s.log.Warn("removed a damaged seed index; fetching it again", "seed", d, "path", f.Name(), "err", err)
		if err := os.RemoveAll(f.Name()); err != nil {
			return nil, fmt.Errorf("remove the damaged seed index: %w", err)
		}
		return nil, fmt.Errorf("seed index %s: %w", d, fs.ErrNotExist)
	}
	return b, nil
}

// tidy removes the seed indexes that are not among seeds, unless they are young.
func (s *seedDir) tidy(seeds []digest.Digest) error {
	keep := map[string]bool{}
	for _, seed := range seeds {
		keep[s.file(seed)] = true
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("look through the kept seed indexes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if keep[path] {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < youngIndex {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a seed index that nobody needs: %w", err))
		}
	}
	return errors.Join(errs...)
}
