package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/continuity/sysx"
)

// A layer may have a/b/file and neither a/ nor a/b/. containerd makes such directories with
// the mode, the owner and the attributes that they have in the layers below, and as 0755 of
// root where there is none (pkg/archive, mkparent). Unpacked alone there never is one. So
// these directories are looked for, and compared with what is below.
//
// What is not seen: a layer that has the files of a directory before the directory itself,
// where one below gives that directory extended attributes that it lacks in this layer.
// Serial unpacking keeps them by accident of the order.

// clockSlack is by how much the time of a file may be before the time that this process
// read earlier: the kernel stamps with the time of its last tick, at most 10 ms old.
const clockSlack = 100 * time.Millisecond

const (
	// readAtOnce is how many entries of a directory are in memory.
	readAtOnce = 1024
	// maxDirectories is how many directories of one layer are looked at; that takes some
	// hundred milliseconds. A Debian with a desktop has 30,000.
	maxDirectories = 1 << 17
)

// unlisted are the directories below root, relative to it, that were made since start and
// are not in the layer: those that are have its times, which containerd sets at the end. A
// layer with directories from the future has too many of them, which does no harm. The root
// itself is the first.
func unlisted(root string, start time.Time) ([]string, error) {
	s := search{root: root, since: start.Add(-clockSlack), out: []string{"."}}
	if err := s.below("."); err != nil {
		return nil, fmt.Errorf("look for directories that the layer does not list: %w", err)
	}
	// A clock that was set back meanwhile would hide them.
	if now := time.Now(); now.Round(0).Sub(start.Round(0)) < now.Sub(start)-clockSlack/2 {
		return nil, errors.New("the clock was set back while it was unpacked")
	}
	return s.out, nil
}

type search struct {
	root  string
	since time.Time
	out   []string
	seen  int
}

// below looks into one directory.
func (s *search) below(rel string) error {
	if s.seen++; s.seen > maxDirectories {
		return fmt.Errorf("it has more than %d", maxDirectories)
	}
	info, err := os.Lstat(filepath.Join(s.root, rel))
	if err != nil {
		return err
	}
	if rel != "." && !info.ModTime().Before(s.since) {
		s.out = append(s.out, rel)
	}
	inside, err := subdirectories(filepath.Join(s.root, rel))
	// Without capabilities root may not look into everything, e.g. what only _apt may
	// read in /var/cache/apt/archives. The links of a directory say whether there is
	// anything to look for: its name, its own dot, and the two dots of each inside.
	if st, ok := info.Sys().(*syscall.Stat_t); ok && errors.Is(err, fs.ErrPermission) && st.Nlink == 2 {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range inside {
		if err := s.below(path.Join(rel, name)); err != nil {
			return err
		}
	}
	return nil
}

// subdirectories of a directory that may have many files.
func subdirectories(at string) (names []string, _ error) {
	dir, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(readAtOnce)
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
		if len(names) > maxDirectories {
			return nil, fmt.Errorf("it has more than %d", maxDirectories)
		}
	}
}

// inherits says what directory rel of upper would have from those in lowers, from the top
// down, "" where it has that already.
func inherits(upper, rel string, lowers []string) string {
	for _, lower := range lowers {
		found, why := lookUp(lower, rel)
		if why != "" {
			return why
		}
		if found {
			return compare(rel, filepath.Join(upper, rel), filepath.Join(lower, rel))
		}
	}
	return ""
}

// lookUp looks for directory rel in one layer. Where another kind of file is on the way,
// containerd follows it or stops there, which is left to it.
func lookUp(lower, rel string) (found bool, why string) {
	at := lower
	for _, name := range strings.Split(rel, "/") {
		at = filepath.Join(at, name)
		info, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, ""
		case err != nil:
			return false, err.Error()
		case !info.IsDir():
			return false, fmt.Sprintf("directory %q that it does not list is not a directory in a layer below it", rel)
		}
	}
	return true, ""
}

// compare says in what a directory differs from the one below it.
func compare(rel, above, below string) string {
	a, err := stat(above)
	if err != nil {
		return err.Error()
	}
	b, err := stat(below)
	if err != nil {
		return err.Error()
	}
	if rel == "." { // its mode and attributes are never those of the root below
		a.Mode, a.xattrs = b.Mode, b.xattrs
	}
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || !slices.Equal(a.xattrs, b.xattrs) {
		return fmt.Sprintf("directory %q, which it does not list, has another owner, mode or attribute below it", rel)
	}
	return ""
}

// facts of a directory that one above it inherits.
type facts struct {
	Mode, Uid, Gid uint32
	xattrs         []string // names and values
}

func stat(dir string) (facts, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil {
		return facts{}, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	out := facts{Mode: st.Mode, Uid: st.Uid, Gid: st.Gid}
	names, err := sysx.LListxattr(dir)
	if errors.Is(err, syscall.ENOTSUP) {
		return out, nil
	}
	if err != nil {
		return facts{}, fmt.Errorf("list the attributes of %s: %w", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.") {
			continue // containerd leaves these where they are
		}
		value, err := sysx.LGetxattr(dir, name)
		if err != nil {
			return facts{}, fmt.Errorf("read attribute %s of %s: %w", name, dir, err)
		}
		out.xattrs = append(out.xattrs, name+"="+string(bytes.Clone(value)))
	}
	return out, nil
}
