package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Reader reads a committed blob.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// ReaderAt opens a blob; the error wraps fs.ErrNotExist where it is not there.
//
// The blob's file is read where this process can, since the content API costs
// forty times the CPU for the same bytes (measured: 2 CPU-s per GB against
// 0.05), and through the API everywhere else. Neither verifies what is read:
// whoever knows its digest does.
func (c *Content) ReaderAt(ctx context.Context, dgst digest.Digest) (Reader, error) {
	if f := c.files.openFile(ctx, dgst); f != nil {
		return f, nil
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	ra, err := cl.ContentStore().ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", dgst, c.conn.fail(err))
	}
	return ra, nil
}

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

func stampOf(f *os.File) (Stamp, bool) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return Stamp{}, false
	}
	return stampOfInfo(info)
}

func stampOfInfo(info fs.FileInfo) (Stamp, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Stamp{}, false
	}
	return Stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, true
}

// Stamp is that of a blob's file, the zero value where there is none to be read.
func (fi *Files) Stamp(ctx context.Context, dgst digest.Digest) Stamp {
	f := fi.openFile(ctx, dgst)
	if f == nil {
		return Stamp{}
	}
	defer f.Close()
	return f.stamp
}

// openFile opens the file of a blob, nil where that cannot be.
func (fi *Files) openFile(ctx context.Context, dgst digest.Digest) *File {
	if dgst.Validate() != nil {
		return nil
	}
	dir := fi.blobs(ctx)
	if dir == "" {
		return nil
	}
	f, err := os.Open(blobPath(dir, dgst))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			fi.conn.log.Debug("failed to open a blob as a file; reading it through containerd", "blob", dgst, "err", err)
		}
		return nil
	}
	stamp, ok := stampOf(f)
	if !ok {
		f.Close()
		return nil
	}
	return &File{File: f, stamp: stamp}
}

func blobPath(dir string, dgst digest.Digest) string {
	return filepath.Join(dir, dgst.Algorithm().String(), dgst.Encoded())
}

// fileless reports whether a blob has no file, false where that cannot be seen.
func (fi *Files) fileless(ctx context.Context, dgst digest.Digest) bool {
	dir := fi.blobs(ctx)
	if dir == "" || dgst.Validate() != nil {
		return false
	}
	_, err := os.Lstat(blobPath(dir, dgst))
	return errors.Is(err, fs.ErrNotExist)
}

// blobs is the directory of the content store's blobs, empty where it is not
// known.
func (fi *Files) blobs(ctx context.Context) string {
	fi.mu.Lock()
	dir, known := fi.dir, fi.known
	fi.mu.Unlock()
	if known {
		return dir
	}
	dir, err := fi.findBlobs(ctx)
	if err != nil {
		return "" // asked again the next time
	}
	fi.mu.Lock()
	defer fi.mu.Unlock()
	fi.dir, fi.known = dir, true
	return dir
}

func (fi *Files) forget() {
	fi.mu.Lock()
	defer fi.mu.Unlock()
	fi.dir, fi.known = "", false
}

// Dir is the directory of the content store, empty where this process cannot see it.
func (fi *Files) Dir(ctx context.Context) string {
	if dir := fi.blobs(ctx); dir != "" {
		return filepath.Dir(dir)
	}
	return ""
}

// findBlobs asks containerd where its content store is. A containerd that does
// not say so, or that sees other directories than this process, is no error.
func (fi *Files) findBlobs(ctx context.Context) (string, error) {
	if fi.conn.embedded != nil {
		return filepath.Join(fi.conn.embedded.root, "content", "blobs"), nil
	}
	ctx, cl, err := fi.conn.use(ctx)
	if err != nil {
		return "", err
	}
	resp, err := cl.IntrospectionService().Plugins(ctx, `type=="io.containerd.content.v1",id=="content"`)
	if err != nil {
		return "", fmt.Errorf("ask for the content store's place: %w", fi.conn.fail(err))
	}
	for _, p := range resp.Plugins {
		root := p.Exports["root"]
		if root == "" {
			continue
		}
		if err := canRead(root); err != nil {
			fi.conn.log.Debug("reading the content store through containerd", "dir", root, "err", err)
			return "", nil
		}
		return filepath.Join(root, "blobs"), nil // made with the first blob
	}
	return "", nil
}

// canRead is why this process cannot read the content store at root. containerd 1.7 makes
// that directory with the first blob only: until then the one above it has to do.
func canRead(root string) error {
	_, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.ReadDir(filepath.Dir(root))
	}
	return err
}

// checked is what the last Check of a ref saw.
type checked struct {
	blobs     []digest.Digest
	top       digest.Digest // the chain id of its topmost snapshot; "" where there is none
	unstacked bool          // an event has told since that the snapshot is gone
	dir       Stamp         // of the blobs' directory when Intact last saw all of them
}

// settled is how long a directory has to be as it is before its stamp tells all later
// states from this one: two changes within one tick of the kernel's clock (10 ms at
// HZ=100), or on a file system that counts in seconds or pairs of them, leave one stamp.
const settled = 3 * time.Second

// settledStamp is that of a directory, false where it changed just now or cannot be read.
func settledStamp(dir string) (Stamp, bool) {
	info, err := os.Stat(dir)
	if err != nil || time.Since(info.ModTime()) < settled {
		return Stamp{}, false
	}
	return stampOfInfo(info)
}

// Intact says whether the pin, the snapshot and the blobs that the last Check of ref
// saw are still there. It asks nobody, since it is called often: the pin was there
// when List was called last, of the snapshot an event would have told, and the blobs
// are there as files, since containerd collects the content of an image that somebody
// discards without an event. While no file comes or goes in their directory, one look
// at that does for all of them. True where the files cannot be read.
func (ck *Checks) Intact(ctx context.Context, ref string) bool {
	ck.mu.Lock()
	seen, known := ck.checked[ref]
	ck.mu.Unlock()
	if !known {
		return true
	}
	if seen.unstacked || ck.images.isLoose(ref) {
		return false
	}
	if slices.ContainsFunc(seen.blobs, func(d digest.Digest) bool { return ck.content.Damaged(ctx, d) }) {
		return false
	}
	blobs := ck.files.blobs(ctx)
	if blobs == "" {
		return true
	}
	dir, quiet := settledStamp(filepath.Join(blobs, digest.SHA256.String()))
	for _, dgst := range seen.blobs {
		if quiet && dir == seen.dir && dgst.Algorithm() == digest.SHA256 {
			continue
		}
		_, err := os.Lstat(blobPath(blobs, dgst))
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	if quiet && dir != seen.dir {
		ck.keepDir(ref, seen.blobs, dir)
	}
	return true
}

// keepDir remembers that these blobs of ref were seen, all of them, after their directory
// had its stamp; nothing where a Check has found other blobs meanwhile.
func (ck *Checks) keepDir(ref string, blobs []digest.Digest, dir Stamp) {
	ck.mu.Lock()
	defer ck.mu.Unlock()
	if seen, known := ck.checked[ref]; known && slices.Equal(seen.blobs, blobs) {
		seen.dir = dir
		ck.checked[ref] = seen
	}
}

// keepChecked remembers what Intact looks for; nothing where ref is not ready.
func (ck *Checks) keepChecked(ref string, seen checked) {
	ck.mu.Lock()
	defer ck.mu.Unlock()
	if ck.checked[ref] = seen; len(seen.blobs) == 0 {
		delete(ck.checked, ref)
	}
}
