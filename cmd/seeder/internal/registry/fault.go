package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/containerd/errdefs"
)

// ErrNotNow is in the errors of a Publisher that say nothing of the image, but that this
// host cannot take it now.
var ErrNotNow = errors.New("not now")

// ofPush is why an image that was pushed is not announced, as a client has to take it: as a
// fault of this host, after which it may try again (5xx), or of the image.
func ofPush(ref string, err error) error {
	if err := ofHost(err); err != nil {
		return err
	}
	return fmt.Errorf("%w: announce %s: %w", ociregistry.ErrManifestInvalid, ref, err)
}

// ofHost is err with the status of a fault of this host, nil where it is none.
func ofHost(err error) error {
	var full interface{ Waiting() string } // of a disk with too little room
	var coded ociregistry.HTTPError
	switch {
	case errors.As(err, &full), isFull(err):
		return ociregistry.NewHTTPError(err, http.StatusInsufficientStorage, nil, nil)
	case errors.As(err, &coded) && coded.StatusCode() >= http.StatusInternalServerError:
		return coded
	case errors.Is(err, ErrNotNow), errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err), errdefs.IsCanceled(err),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return unavailable(err)
	}
	return nil
}

// isFull says whether a disk is full. containerd says that in words.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error()) || strings.Contains(err.Error(), syscall.EDQUOT.Error())
}

// unavailable is an error of this host and not of the request.
func unavailable(err error) error {
	return ociregistry.NewHTTPError(err, http.StatusServiceUnavailable, nil, nil)
}

// failure keeps why the body of a request was not taken: ociserver drops the status of such
// an error.
type failure struct{ err error }

type failureKey struct{}

func withFailure(ctx context.Context) context.Context {
	return context.WithValue(ctx, failureKey{}, &failure{})
}

// note keeps the first error.
func note(ctx context.Context, err error) error {
	if f, ok := ctx.Value(failureKey{}).(*failure); ok && f.err == nil {
		f.err = err
	}
	return err
}

// bounded is the body of a request for a manifest.
type bounded struct {
	io.ReadCloser // an http.MaxBytesReader
	ctx           context.Context
}

// Read implements io.Reader.
func (b bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return n, note(b.ctx, ociregistry.NewHTTPError(errLarge, http.StatusRequestEntityTooLarge, nil, nil))
	}
	return n, err
}
