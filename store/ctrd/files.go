package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/store/blobfile"
)

// Files owns the way to blobs as files, where this process can read them.
type Files struct {
	conn *Conn

	mu    sync.Mutex
	dir   string // of the content store's blobs, once known; empty where it cannot be read
	known bool
}

// File is a blob that is read as the file that it is.
type File = blobfile.File

// Stamp tells states of a file apart.
type Stamp = blobfile.Stamp

// Stamp is that of a blob's file, the zero value where there is none to be read.
func (fi *Files) Stamp(ctx context.Context, dgst digest.Digest) Stamp {
	f := fi.openFile(ctx, dgst)
	if f == nil {
		return Stamp{}
	}
	defer f.Close()
	return f.Stamp()
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
	f, err := blobfile.Open(blobfile.Path(dir, dgst))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			fi.conn.log.Debug("failed to open a blob as a file; reading it through containerd", "blob", dgst, "err", err)
		}
		return nil
	}
	return f
}

// fileless reports whether a blob has no file, false where that cannot be seen.
func (fi *Files) fileless(ctx context.Context, dgst digest.Digest) bool {
	dir := fi.blobs(ctx)
	if dir == "" || dgst.Validate() != nil {
		return false
	}
	_, err := os.Lstat(blobfile.Path(dir, dgst))
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
		return fi.conn.embedded.Blobs(), nil
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
