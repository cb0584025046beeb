package dst

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

var diskKinds = []kind{
	{name: "disk full", group: disks, weight: 4, begin: diskFull},
	{name: "writes fail", group: disks, weight: 4, begin: openFilesAs(os.O_RDONLY, "stage", "cache", "embedded", "catalog.db")},
	{name: "reads fail", group: disks, weight: 3, begin: openFilesAs(os.O_WRONLY, "stage", "cache")},
	{name: "staged chunk: EIO", group: disks, weight: 3, begin: forSome(
		func(s *faultyStore) { s.putErr = errIO }, func(s *faultyStore) { s.putErr = nil })},
	{name: "sent chunk: EIO", group: disks, weight: 3, begin: forSome(
		func(s *faultyStore) { s.frameErr = errIO }, func(s *faultyStore) { s.frameErr = nil })},
	{name: "staged frames rot", group: disks, weight: 3, begin: rot("stage/*.frames")},
	{name: "cached frames rot", group: disks, weight: 3, begin: rot("cache/*.frames")},
	{name: "seed index rots", group: disks, weight: 3, begin: rot("seeds/*.json")},
	{name: "members file rots", group: disks, weight: 1, begin: rot("members.json")},
	{name: "staged frames cut", group: disks, weight: 3, begin: cutFile("stage/*.frames")},
	{name: "cached frames cut", group: disks, weight: 2, begin: cutFile("cache/*.frames")},
	{name: "staged frames removed", group: disks, weight: 2, begin: removeFile("stage/*.frames")},
	{name: "cached frames removed", group: disks, weight: 2, begin: removeFile("cache/*.frames")},
	{name: "blob removed", group: disks, weight: 3, begin: blobRemoved},
	{name: "blob rots", group: disks, weight: 3, begin: blobRots},
}

// diskFull leaves less than 64 KiB free: writes are short, then there is no space.
func diskFull(c *cluster, m *machine, e Event) (func(), bool) {
	var st unix.Statfs_t
	if !m.up || !c.mounts || unix.Statfs(m.dir, &st) != nil {
		return nil, false
	}
	dir := m.dir
	used := (int64(st.Blocks) - int64(st.Bfree)) * st.Bsize
	if err := remount(dir, used+int64(e.Arg%(64<<10))); err != nil {
		return nil, false
	}
	return func() {
		if m.dir == dir {
			_ = remount(dir, diskBytes)
		}
	}, true
}

func remount(dir string, bytes int64) error {
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, sizeOption(bytes))
}

// openFilesAs puts, in the place of each open file of a machine below some paths, the
// same file opened for reading or for writing alone: what the other one would do fails.
// It is a disk that fails from one moment to the next, without a seam in the product.
func openFilesAs(mode int, below ...string) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(_ *cluster, m *machine, _ Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		m.lose()
		type swapped struct{ fd, real, fake int }
		synctest.Wait()
		var all []swapped
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, entry := range fds {
			fd, err := strconv.Atoi(entry.Name())
			path, lerr := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
			rel, ok := strings.CutPrefix(path, m.dir+"/")
			if err != nil || lerr != nil || !ok || m.c.own[fd] || !slices.ContainsFunc(below, func(b string) bool { return strings.HasPrefix(rel, b) }) {
				continue
			}
			if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
				continue
			}
			fake, err := unix.Open(path, mode|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			real, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil || unix.Dup3(fake, fd, unix.O_CLOEXEC) != nil {
				unix.Close(fake)
				continue
			}
			m.c.own[real], m.c.own[fake] = true, true
			all = append(all, swapped{fd, real, fake})
		}
		end := sync.OnceFunc(func() {
			for _, s := range all {
				if isSame(s.fd, s.fake) { // else it was closed meanwhile, and perhaps is another file now
					_ = unix.Dup3(s.real, s.fd, unix.O_CLOEXEC)
				}
				delete(m.c.own, s.real)
				delete(m.c.own, s.fake)
				unix.Close(s.real)
				unix.Close(s.fake)
			}
		})
		m.wellAgain = append(m.wellAgain, end)
		return end, len(all) > 0
	}
}

// isSame reports whether two descriptors are the same file, opened in the same way. Its name
// says nothing: frames move from the stage to the cache, and are removed.
func isSame(a, b int) bool {
	var sa, sb unix.Stat_t
	fa, erra := unix.FcntlInt(uintptr(a), unix.F_GETFL, 0)
	fb, errb := unix.FcntlInt(uintptr(b), unix.F_GETFL, 0)
	return errors.Join(erra, errb, unix.Fstat(a, &sa), unix.Fstat(b, &sb)) == nil &&
		sa.Dev == sb.Dev && sa.Ino == sb.Ino && fa&unix.O_ACCMODE == fb&unix.O_ACCMODE
}

// chosen is a file of m that matches, by Arg.
func chosen(m *machine, pattern string, e Event) (string, bool) {
	found, err := filepath.Glob(filepath.Join(m.dir, pattern))
	if err != nil || len(found) == 0 {
		return "", false
	}
	return found[e.Arg%uint64(len(found))], true
}

// rot flips one bit of a file.
func rot(pattern string) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(c *cluster, m *machine, e Event) (func(), bool) {
		path, ok := chosen(m, pattern, e)
		m.lose()
		c.touched[strings.TrimSuffix(filepath.Base(path), ".json")] = true
		return nil, ok && flip(path, e.Arg) == nil
	}
}

func flip(path string, arg uint64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return os.ErrInvalid
	}
	rng := rand.New(rand.NewPCG(arg, 4))
	at, b := rng.Int64N(st.Size()), make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 1 << rng.IntN(8)
	_, err = f.WriteAt(b, at)
	return err
}

// cutFile cuts off the end of a file, as a write that was lost.
func cutFile(pattern string) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(_ *cluster, m *machine, e Event) (func(), bool) {
		path, ok := chosen(m, pattern, e)
		if !ok {
			return nil, false
		}
		m.lose()
		st, err := os.Stat(path)
		return nil, err == nil && st.Size() > 0 && os.Truncate(path, st.Size()-1-int64(e.Arg)%st.Size()) == nil
	}
}

func removeFile(pattern string) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(_ *cluster, m *machine, e Event) (func(), bool) {
		path, ok := chosen(m, pattern, e)
		m.lose()
		return nil, ok && os.Remove(path) == nil
	}
}

// blobRemoved takes a blob out of containerd's content store, below its feet: one that
// another host has, too, since what nobody has any more never comes back.
func blobRemoved(c *cluster, m *machine, e Event) (func(), bool) {
	path, ok := chosen(m, "embedded/content/blobs/sha256/*", e)
	if !ok || !c.elsewhere(m, filepath.Base(path)) {
		return nil, false
	}
	m.lose()
	m.tampered[filepath.Base(path)], c.touched[filepath.Base(path)] = true, true
	return nil, os.Remove(path) == nil
}

// blobRots flips a bit of a manifest, config or layer that another host has, too.
func blobRots(c *cluster, m *machine, e Event) (func(), bool) {
	path, ok := chosen(m, "embedded/content/blobs/sha256/*", e)
	if !ok || !c.elsewhere(m, filepath.Base(path)) {
		return nil, false
	}
	m.lose()
	m.tampered[filepath.Base(path)], m.rotten[filepath.Base(path)], c.touched[filepath.Base(path)] = true, true, true
	return nil, flip(path, e.Arg) == nil
}

// elsewhere reports whether another host has a blob that no fault has touched.
func (c *cluster) elsewhere(m *machine, hex string) bool {
	return slices.ContainsFunc(others(c, m), func(o *machine) bool {
		_, err := os.Lstat(o.blobPath(hex))
		return err == nil && !o.tampered[hex]
	})
}
