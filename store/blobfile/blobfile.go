// Package blobfile reads blobs as the files that they are in a content store.
//
// It owns where the file of a blob is, and how states of a file are told apart. It never
// writes. Invariant: two states of a file that was written in between have two stamps, if
// the first is older than Settled.
package blobfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// File is a blob that is read as the file that it is: many small reads cost no
// more than one large one.
type File struct {
	*os.File
	stamp Stamp
}

// Size is that of the blob in bytes.
func (f *File) Size() int64 { return f.stamp.size }

// Stamp is another one once somebody has written to the file, or put another one
// in its place.
func (f *File) Stamp() Stamp { return f.stamp }

// Stamp tells states of a file apart. The zero value is that of no file.
type Stamp struct {
	device, inode uint64
	size          int64
	mtime, ctime  syscall.Timespec
}

// Open opens the file at path. It is nil without an error if that is not a regular file.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		if stamp := stampOf(info); stamp != (Stamp{}) {
			return &File{File: f, stamp: stamp}, nil
		}
	}
	return nil, f.Close()
}

func stampOf(info fs.FileInfo) Stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{}
	}
	return Stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// Path is where a content store has a blob, below the directory of its blobs.
func Path(dir string, dgst digest.Digest) string {
	return filepath.Join(dir, dgst.Algorithm().String(), dgst.Encoded())
}

// Settled is how long a directory has to be as it is before its stamp tells all later
// states from this one: two changes within one tick of the kernel's clock (10 ms at
// HZ=100), or on a file system that counts in seconds or pairs of them, leave one stamp.
const Settled = 3 * time.Second

// SettledStamp is that of a directory, the zero value if it changed within the last
// Settled or cannot be read.
func SettledStamp(dir string) Stamp {
	info, err := os.Stat(dir)
	if err != nil || time.Since(info.ModTime()) < Settled {
		return Stamp{}
	}
	return stampOf(info)
}
