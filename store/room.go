package store

import (
	"context"
	"fmt"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Reserve is what stays free of a file system: a share of it, or bytes.
type Reserve struct {
	Share float64 // 0 to 1
	Bytes int64
}

func (r Reserve) of(totalBytes int64) int64 { return max(r.Bytes, int64(r.Share*float64(totalBytes))) }

// RoomError says that a file system has not the room for what is to be written.
type RoomError struct {
	Dir                      string
	Needed, Reserve, Lacking int64 // bytes
}

// Waiting says what lacks: it may come to be there by itself.
func (e *RoomError) Waiting() string {
	return fmt.Sprintf("the disk of %s lacks %s: %s are needed and %s stay free (images.min_free)",
		e.Dir, humanBytes(e.Lacking), humanBytes(e.Needed), humanBytes(e.Reserve))
}

// LackingBytes says how much.
func (e *RoomError) LackingBytes() int64 { return e.Lacking }

func (e *RoomError) Error() string { return e.Waiting() }

func humanBytes(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// unpackedFor is how much a compressed layer takes unpacked, in multiples of its
// bytes: layers of programs shrink to a third with gzip.
const unpackedFor = 3

// Room is an *ExcludedError where this host is not meant to hold the image, and a
// *RoomError where what this host still lacks of the image would leave
// less free than the reserve: its frames in data_dir, its blobs and what they unpack
// to in containerd's directory. It is an estimate: what layers unpack to shows only
// then, and other writers are not asked.
func (i *Image) Room(ctx context.Context) error {
	if i.excluded != nil {
		return i.excluded
	}
	var staged, stored int64
	for k, b := range i.blobs {
		if !i.wanted[k] || b.isPresent() {
			continue
		}
		for at := range b.info.Sums {
			if !b.staged().Have(at) {
				staged += int64(b.info.ChunkLen(at))
			}
		}
		stored += b.info.Bytes
		switch {
		case i.store.ctrd.StoreOnly() || !isLayer(b.info.MediaType):
		case isCompressed(b.info.MediaType):
			stored += unpackedFor * b.info.Bytes
		default:
			stored += b.info.Bytes
		}
	}
	if stored == 0 {
		return nil
	}
	return i.store.room(ctx, staged, stored)
}

// room asks for room in data_dir and in containerd's directory. One that cannot be
// seen from here is passed over.
func (s *Store) room(ctx context.Context, staged, stored int64) error {
	data, err := statFS(s.cfg.DataDir)
	if err != nil {
		return nil
	}
	root := s.ctrd.Dir(ctx)
	if root == "" {
		return data.room(staged, s.cfg.MinFree)
	}
	blobs, err := statFS(root)
	if err != nil {
		return data.room(staged, s.cfg.MinFree)
	}
	if blobs.device == data.device {
		return data.room(staged+stored, s.cfg.MinFree)
	}
	if err := data.room(staged, s.cfg.MinFree); err != nil {
		return err
	}
	return blobs.room(stored, s.cfg.MinFree)
}

// Disk is a directory that this host's images are written to, and the room on its
// file system.
type Disk struct {
	Dir                     string
	FreeBytes, ReserveBytes int64
}

// Disks are data_dir and, where it can be seen from here, containerd's directory.
func (s *Store) Disks(ctx context.Context) []Disk {
	var out []Disk
	for _, dir := range []string{s.cfg.DataDir, s.ctrd.Dir(ctx)} {
		if dir == "" || len(out) > 0 && out[0].Dir == dir {
			continue
		}
		if f, err := statFS(dir); err == nil {
			out = append(out, Disk{Dir: dir, FreeBytes: f.free, ReserveBytes: s.cfg.MinFree.of(f.total)})
		}
	}
	return out
}

// fileSystem is one with a directory on it.
type fileSystem struct {
	dir         string
	device      uint64
	free, total int64 // bytes
}

func statFS(dir string) (fileSystem, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fileSystem{}, err
	}
	if err := unix.Stat(dir, &st); err != nil {
		return fileSystem{}, err
	}
	return fileSystem{dir: dir, device: st.Dev, free: int64(fs.Bavail) * fs.Bsize, total: int64(fs.Blocks) * fs.Bsize}, nil
}

func (f fileSystem) room(needed int64, r Reserve) error {
	reserve := r.of(f.total)
	if lacking := needed + reserve - f.free; lacking > 0 {
		return &RoomError{Dir: f.dir, Needed: needed, Reserve: reserve, Lacking: lacking}
	}
	return nil
}

// archiveRoom is what has to be free for an archive to go on being written.
const archiveRoom = 128 << 20

// Space is what is left of the file system with a directory on it.
type Space struct {
	Dir                  string
	Free, Total, Reserve int64 // bytes; Reserve is what shall stay free
	FreeFiles, Files     uint64
}

// SpaceOf asks for the space of dir's file system.
func SpaceOf(dir string, r Reserve) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, fmt.Errorf("the file system of %s: %w", dir, err)
	}
	total := int64(st.Blocks) * st.Bsize
	return Space{Dir: dir, Free: int64(st.Bavail) * st.Bsize, Total: total, Reserve: r.of(total), FreeFiles: st.Ffree, Files: st.Files}, nil
}
