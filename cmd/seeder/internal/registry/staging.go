package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"
)

const (
	// maxUploads bounds the uploads that are open at once; docker sends five layers at a time.
	maxUploads = 64
	// staleAfter is when what a push that broke off has left is removed.
	staleAfter = 15 * time.Minute
	// oldAfter is when a blob is removed although others are pushed: the longest push, of
	// 100 GB at 10 Mbit/s, is over then.
	oldAfter = 24 * time.Hour
	// roomStep is how many bytes are taken between two looks at the free room.
	roomStep = 32 << 20
)

// staging is a directory of what has been pushed and is not an image yet: verified blobs by
// digest, and uploads. Nothing in it outlives the process.
type staging struct {
	dir  string
	room func(ctx context.Context, bytes int64) error // whether so much more may be written

	mu      sync.Mutex
	uploads map[string]*upload
}

// openStaging makes the directory anew: nobody goes on with a push of an earlier process.
func openStaging(dir string, room func(context.Context, int64) error) (*staging, error) {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("make the directory of pushed blobs: %w", err)
	}
	return &staging{dir: dir, room: room, uploads: map[string]*upload{}}, nil
}

// sweep removes uploads that have not been touched since staleAfter, and blobs where nothing
// has been: a blob may belong to a push that is still sending another one.
func (s *staging) sweep(now time.Time) error {
	newest, err := s.sweepUploads(now)
	errs := []error{err}
	paths, err := filepath.Glob(filepath.Join(s.dir, "sha256-*"))
	errs = append(errs, err)
	touched := map[string]time.Time{}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			touched[path] = info.ModTime()
			newest = later(newest, info.ModTime())
		}
	}
	quiet := now.Sub(newest) > staleAfter
	for path, at := range touched {
		if quiet || now.Sub(at) > oldAfter {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be an image now
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// sweepUploads is sweep of the uploads. It says when the others were last touched, which is
// now where a request writes.
func (s *staging) sweepUploads(now time.Time) (newest time.Time, _ error) {
	var errs []error
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.uploads {
		if !u.mu.TryLock() {
			newest = now
			continue
		}
		if now.Sub(u.touched) > staleAfter {
			errs = append(errs, u.drop())
			delete(s.uploads, u.id)
		} else {
			newest = later(newest, u.touched)
		}
		u.mu.Unlock()
	}
	return newest, errors.Join(errs...)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// close drops everything. A request that still runs, over the control socket, finds its file
// gone.
func (s *staging) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, u := range s.uploads {
		if u.mu.TryLock() {
			errs = append(errs, u.drop())
			u.mu.Unlock()
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (s *staging) path(d digest.Digest) string {
	return filepath.Join(s.dir, "sha256-"+d.Encoded())
}

// open opens a blob that was pushed; the error wraps fs.ErrNotExist if it is not there. It
// is young again.
func (s *staging) open(d digest.Digest) (Blob, error) {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	info, err := f.Stat()
	if err := errors.Join(err, os.Chtimes(f.Name(), now, now)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return stagedBlob{f, info.Size()}, nil
}

// put keeps a small blob.
func (s *staging) put(ctx context.Context, content []byte) error {
	u, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer u.Close()
	if _, err := u.Write(content); err != nil {
		return err
	}
	_, err = u.Commit(digest.FromBytes(content))
	return err
}

// remove drops blobs that have become an image.
func (s *staging) remove(blobs []digest.Digest) error {
	var errs []error
	for _, d := range blobs {
		if err := os.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// begin opens an upload; its lock is held until Close.
func (s *staging) begin(ctx context.Context) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.uploads) >= maxUploads {
		return nil, fmt.Errorf("%w: %d uploads are open", ociregistry.ErrTooManyRequests, len(s.uploads))
	}
	u := &upload{staging: s, id: rand.Text(), ctx: ctx, hash: digest.SHA256.Hash(), touched: time.Now()}
	f, err := os.OpenFile(filepath.Join(s.dir, "upload-"+u.id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, writing(fmt.Errorf("begin an upload: %w", err))
	}
	u.file = f
	u.mu.Lock()
	s.uploads[u.id] = u
	return u, nil
}

// atEnd as an offset is wherever the upload ends.
const atEnd = -1

// resume goes on with an upload at offset.
func (s *staging) resume(ctx context.Context, id string, offset int64) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil {
		return nil, ociregistry.ErrBlobUploadUnknown
	}
	if !u.mu.TryLock() {
		return nil, fmt.Errorf("%w: another request writes to this upload", ociregistry.ErrTooManyRequests)
	}
	if offset != atEnd && offset != u.size {
		u.mu.Unlock()
		return nil, fmt.Errorf("%w: the upload has %d bytes", ociregistry.ErrRangeInvalid, u.size)
	}
	u.ctx, u.touched = ctx, time.Now()
	return u, nil
}

// upload is a blob on its way: ociregistry.BlobWriter. Its holder has its lock.
type upload struct {
	staging *staging
	id      string

	mu      sync.Mutex
	ctx     context.Context // of the request that writes
	file    *os.File
	hash    hash.Hash
	size    int64
	asked   int64 // for room up to there
	touched time.Time
}

// Write implements io.Writer. Of an upload for which there is no room nothing stays.
func (u *upload) Write(p []byte) (int, error) {
	if u.size+int64(len(p)) > u.asked {
		step := max(roomStep, int64(len(p)))
		if err := u.staging.room(u.ctx, step); err != nil {
			return 0, u.fail(ociregistry.NewHTTPError(err, http.StatusInsufficientStorage, nil, nil))
		}
		u.asked = u.size + step
	}
	n, err := u.file.Write(p)
	u.hash.Write(p[:n])
	u.size += int64(n)
	u.touched = time.Now()
	if err != nil {
		return n, u.fail(writing(err))
	}
	return n, nil
}

// fail drops the upload, since going on with it would fail again, and keeps why.
func (u *upload) fail(err error) error {
	return note(u.ctx, errors.Join(err, u.Cancel()))
}

// writing is an error of the disk of data_dir.
func writing(err error) error {
	if host := ofHost(err); host != nil {
		return host
	}
	return unavailable(err)
}

// Close ends this request's part of the upload.
func (u *upload) Close() error {
	u.mu.Unlock()
	return nil
}

// Size is what has come, in bytes.
func (u *upload) Size() int64 { return u.size }

// ChunkSize is the least that a client is to send at once: nothing.
func (u *upload) ChunkSize() int { return 0 }

// ID names the upload.
func (u *upload) ID() string { return u.id }

// Commit keeps what came if it is what d says; else nothing of it stays.
func (u *upload) Commit(d digest.Digest) (ociregistry.Descriptor, error) {
	got := digest.NewDigest(digest.SHA256, u.hash)
	if got != d {
		return ociregistry.Descriptor{}, errors.Join(fmt.Errorf("%w: what came has the digest %s", ociregistry.ErrDigestInvalid, got), u.Cancel())
	}
	if err := errors.Join(u.file.Close(), os.Rename(u.file.Name(), u.staging.path(d))); err != nil {
		return ociregistry.Descriptor{}, writing(fmt.Errorf("keep the pushed blob %s: %w", d, err))
	}
	u.forget()
	return ociregistry.Descriptor{MediaType: blobMediaType, Digest: d, Size: u.size}, nil
}

// Cancel drops the upload.
func (u *upload) Cancel() error {
	u.forget()
	return u.drop()
}

func (u *upload) forget() {
	u.staging.mu.Lock()
	defer u.staging.mu.Unlock()
	delete(u.staging.uploads, u.id)
}

func (u *upload) drop() error { return errors.Join(u.file.Close(), os.Remove(u.file.Name())) }
