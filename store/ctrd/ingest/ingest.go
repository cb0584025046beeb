// Package ingest is how a blob is written into a content store of containerd: under which
// names, in how many messages, and how an unfinished one is removed.
//
// It owns the names of ingests and how long one is waited for that somebody else has. It
// knows no lease, and nothing of what the blob belongs to.
//
// Invariant: a blob is written under one of its own names only, so that a daemon that
// comes back after a crash finds what was written of it.
package ingest

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// refTries is how often a locked ref is tried: containerd frees the ref of a
// crashed writer as soon as it sees the connection end.
const refTries = 20

const (
	abortTries = 20
	abortPause = 25 * time.Millisecond
)

// refsOf are the names under which a blob may be written. One does unless
// containerd has lost it: where its database cannot be written as an ingest begins
// (its disk is full), it keeps the name locked until it is started again.
func refsOf(dgst digest.Digest) []string {
	ref := "seeder-" + dgst.String()
	return []string{ref, ref + "-2", ref + "-3", ref + "-4"}
}

// WithRef calls write with a name for the blob's ingest. It waits for a name that
// another writer has; one that is locked for longer than anybody takes to notice the
// end of a writer is left for the next.
func WithRef(ctx context.Context, dgst digest.Digest, write func(ref string) error) (err error) {
	for i, ref := range refsOf(dgst) {
		// A writer is a stream that lives in ctx, so that the wait is bounded here and
		// not by ctx.
		for try := 0; ; try++ {
			err = write(ref)
			if !errdefs.IsUnavailable(err) || try == refTries || i > 0 && isLocked(err) {
				break
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(250 * time.Millisecond):
			}
		}
		if !isLocked(err) {
			break
		}
	}
	return err
}

// isLocked tells a ref that is in use from a containerd that is not there: both are
// Unavailable.
func isLocked(err error) bool {
	return errdefs.IsUnavailable(err) && strings.Contains(err.Error(), " locked for ")
}

// Abort throws away the unfinished blob.
func Abort(ctx context.Context, cs content.Store, dgst digest.Digest) error {
	for _, ref := range refsOf(dgst) {
		if err := abort(ctx, cs, ref); err != nil {
			return err
		}
	}
	return nil
}

// abort tries for a while: a daemon learns a moment later than Close that the writer
// is gone; until then what is to be removed may still be written to.
func abort(ctx context.Context, cs content.Store, ref string) error {
	for try := 0; ; try++ {
		err := cs.Abort(ctx, ref)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if try == abortTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(abortPause):
		}
	}
}

// CommitWhole writes a blob with labels in one message: it asks for a commit in the first message of the stream, which containerd's
// client has no call for. Data at offset 0 replaces what is there under the ref.
func CommitWhole(ctx context.Context, conn grpc.ClientConnInterface, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
	stream, err := contentapi.NewContentClient(conn).Write(ctx)
	if err != nil {
		return errgrpc.ToNative(err)
	}
	err = stream.Send(&contentapi.WriteContentRequest{
		Action: contentapi.WriteAction_COMMIT, Ref: ref,
		Total: desc.Size, Expected: desc.Digest.String(), Data: p, Labels: labels,
	})
	if err != nil && !errors.Is(err, io.EOF) { // what ended the stream is what is received
		return errgrpc.ToNative(err)
	}
	if err := stream.CloseSend(); err != nil {
		return errgrpc.ToNative(err)
	}
	for { // a stream that is not read to its end is kept until ctx ends
		_, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errgrpc.ToNative(err)
		}
	}
}

// WriteWhole is CommitWhole for a content store in this process.
func WriteWhole(ctx context.Context, cs content.Store, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
	w, err := cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return err
	}
	err = w.Truncate(0)
	if err == nil {
		_, err = w.Write(p)
	}
	if err == nil {
		err = w.Commit(ctx, desc.Size, desc.Digest, content.WithLabels(labels))
	}
	return errors.Join(err, w.Close())
}
