package store

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"seeder/internal/figure"
	"seeder/store/artifact"
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
	LackingFiles             int64 // inodes
	FreeFiles, Files         int64 // inodes of the file system
	Kept                     int64 // bytes of versions that are kept for rolling back

	device uint64
}

// Waiting says what lacks, which may appear by itself, and what would free it.
func (e *RoomError) Waiting() string {
	var s string
	if e.Lacking > 0 {
		s = fmt.Sprintf("the disk of %s needs %s more: %s are needed and %s are reserved (images.min_free)",
			e.Dir, humanBytes(e.Lacking), humanBytes(e.Needed), humanBytes(e.Reserve))
	} else {
		s = fmt.Sprintf("the disk of %s needs %d more inodes: %d of %d are free, and 5%% are reserved", e.Dir, e.LackingFiles, e.FreeFiles, e.Files)
	}
	s += "; the frame cache was already emptied. To free space: `k3s crictl rmi --prune` removes the images that no container uses"
	if e.Kept > 0 {
		s += fmt.Sprintf(", images.keep_previous: 0 and `systemctl restart seeder` release up to %s of earlier versions", humanBytes(e.Kept))
	}
	return s + ", `seeder withdraw --purge REF` removes an announced image"
}

func (e *RoomError) Error() string { return e.Waiting() }

func humanBytes(n int64) string { return figure.Size(n) }

// unpackedFor is how much a compressed layer takes unpacked, in multiples of its
// bytes: layers of programs shrink to a third with gzip.
const unpackedFor = 3

// bytesPerFile is how large a file of a layer is taken to be: four times what ext4
// allots an inode for (16 KiB), so that it binds on file systems made for large files.
const bytesPerFile = 64 << 10

// need is what is to be written.
type need struct{ bytes, files int64 }

func (n need) plus(m need) need { return need{n.bytes + m.bytes, n.files + m.files} }

func unpacked(bytes int64) need { return need{bytes, bytes / bytesPerFile} }

// Room says why what this host still lacks of the image may not come: it would leave
// less free than the reserve, and so many bytes are lacking. why is empty where there is
// room. Counted are its frames in data_dir, its blobs and what they unpack
// to in containerd's directory. It is an estimate: what layers unpack to shows only
// then, and other writers are not asked.
func (i *Image) Room(ctx context.Context) (why string, lackingBytes int64, err error) {
	err = i.room(ctx)
	var lacks *RoomError
	if errors.As(err, &lacks) {
		return lacks.Waiting(), lacks.Lacking, nil
	}
	return "", 0, err
}

// room is a *RoomError where there is none.
func (i *Image) room(ctx context.Context) error {
	var staged, stored need
	for k, b := range i.blobs {
		if !i.wanted[k] || b.isPresent() {
			continue
		}
		staged.files++
		for at := range b.info.Sums {
			if !b.staged().Have(at) {
				staged.bytes += int64(b.info.ChunkLen(at))
			}
		}
		stored = stored.plus(need{b.info.Bytes, 1})
		switch {
		case i.store.ctrd.Conn.StoreOnly() || !artifact.IsLayer(b.info.MediaType):
		case isCompressed(b.info.MediaType):
			stored = stored.plus(unpacked(unpackedFor * b.info.Bytes))
		default:
			stored = stored.plus(unpacked(b.info.Bytes))
		}
	}
	if stored.bytes == 0 {
		return nil
	}
	return i.store.disks.room(ctx, staged, stored)
}

// Disk is a directory that this host's images are written to, and the room on its
// file system.
type Disk struct {
	Dir                     string
	FreeBytes, ReserveBytes int64
	FreeInodes, Inodes      int64 // 0 of 0 where the file system has no limit of them
}

// fileSystem is one with a directory on it.
type fileSystem struct {
	dir              string
	device           uint64
	free, total      int64 // bytes
	freeFiles, files int64 // inodes; files 0: there is no limit of them (btrfs)
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
	return fileSystem{
		dir: dir, device: st.Dev, free: int64(fs.Bavail) * fs.Bsize, total: int64(fs.Blocks) * fs.Bsize,
		freeFiles: int64(fs.Ffree), files: int64(fs.Files),
	}, nil
}

// inodesKept is the share of the inodes that stays free: the kubelet evicts pods
// below 5 % (nodefs.inodesFree, imagefs.inodesFree).
const inodesKept = 0.05

func (f fileSystem) room(n need, r Reserve) error {
	e := &RoomError{Dir: f.dir, Needed: n.bytes, Reserve: r.of(f.total), device: f.device}
	e.Lacking = max(0, n.bytes+e.Reserve-f.free)
	if f.files > 0 {
		e.LackingFiles = max(0, n.files+int64(inodesKept*float64(f.files))-f.freeFiles)
		e.FreeFiles, e.Files = f.freeFiles, f.files
	}
	if e.Lacking > 0 || e.LackingFiles > 0 {
		return e
	}
	return nil
}

// archiveRoom is what has to be free for an archive to go on being written.
const archiveRoom = 128 << 20

// Space is what is left of the file system with a directory on it.
type Space struct {
	Dir                  string
	Free, Total, Reserve int64 // bytes; Reserve is what must stay free
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
