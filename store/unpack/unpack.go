// Package unpack puts the layers of an image into a snapshotter of containerd.
//
// It owns in which order that happens: one layer after the other, each on top of those
// below it, or side by side, where a snapshotter can put a layer that was unpacked alone on
// top of others later (containerd's capability rebase). It never reads a layer, which
// containerd's own differ does, and writes no label of a blob.
//
// Invariant: what is committed as the snapshot of a layer is what unpacking one layer after
// the other makes of it, file by file; a layer of which this cannot be told is unpacked again
// on top of those below it.
package unpack

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// Stack is the layers of one image and where they go.
type Stack struct {
	Layers      []rootfs.Layer // from the bottom up
	Snapshotter snapshots.Snapshotter
	Differ      diff.Applier
	// Hold keeps a snapshot that was found, and so those below it, from garbage collection
	// until the work ends; nil: nothing does. Nobody else may refer to it.
	Hold func(ctx context.Context, snapshot string) error
	// Slots bounds how many layers are unpacked at once, of all images together; nil:
	// one after the other.
	Slots Slots
	// Root is the root directory of containerd's host as this process sees it; "": the
	// same. Tests look into other mount namespaces.
	Root string
	Log  *slog.Logger
}

// Synced makes containerd write what it unpacks to disk before the snapshot counts as
// there. Without it a power cut within the next half minute leaves a snapshot of empty
// files, which containerd takes for whole ever after.
var Synced = []diff.ApplyOpt{diff.WithSyncFs(true)}

// Chain is the chain id of the lowest n layers, which names the snapshot of layer n-1.
func (s *Stack) Chain(n int) digest.Digest { return identity.ChainID(s.diffs(n)) }

func (s *Stack) diffs(n int) []digest.Digest {
	out := make([]digest.Digest, 0, n+1) // rootfs appends the next one
	for _, l := range s.Layers[:n] {
		out = append(out, l.Diff.Digest)
	}
	return out
}

// Apply unpacks layer i on top of those below it, which are unpacked, unless it is unpacked
// already. absent says that it is known not to be.
func (s *Stack) Apply(ctx context.Context, i int, absent bool) error {
	sn := s.Snapshotter
	if absent {
		sn = unasked{sn}
	}
	if _, err := rootfs.ApplyLayerWithOpts(ctx, s.Layers[i], s.diffs(i), sn, s.Differ, nil, Synced); err != nil {
		return fmt.Errorf("unpack layer %s: %w", s.Layers[i].Blob.Digest, err)
	}
	return nil
}

// unasked is a snapshotter that need not be asked whether it has a snapshot. Where
// somebody else has made it meanwhile, its Commit says so.
type unasked struct{ snapshots.Snapshotter }

// Stat implements snapshots.Snapshotter.
func (unasked) Stat(_ context.Context, key string) (snapshots.Info, error) {
	return snapshots.Info{}, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
}

// Arrivals returns the index of a layer whose blob is here, each once, in the order in
// which they come; it waits for the next one. It is called once for each layer.
type Arrivals func(ctx context.Context) (int, error)

// Present is for layers that are all here.
func Present() Arrivals {
	next := -1
	return func(context.Context) (int, error) { next++; return next, nil }
}

// All unpacks all layers as they arrive. done is called for each, from the bottom up, when
// its snapshot is there. What was begun when it fails is removed.
func (s *Stack) All(ctx context.Context, next Arrivals, done func(ctx context.Context, i int) error) error {
	if s.Slots == nil || len(s.Layers) < 2 {
		return s.serial(ctx, next, done)
	}
	return s.sideBySide(ctx, next, done)
}

// findFirst is the lowest layer that is not unpacked. What is below it stays there.
func (s *Stack) findFirst(ctx context.Context) (first int, _ error) {
	for {
		for first = 0; first < len(s.Layers); first++ { // no snapshot is there without those below it
			if there, err := s.unpacked(ctx, first); err != nil {
				return 0, err
			} else if !there {
				break
			}
		}
		if s.Hold == nil || first == 0 {
			return first, nil
		}
		if err := s.Hold(ctx, s.Chain(first).String()); err != nil {
			return 0, fmt.Errorf("keep the snapshot of layer %s: %w", s.Layers[first-1].Blob.Digest, err)
		}
		// It may have been collected before it was held.
		if there, err := s.unpacked(ctx, first-1); err != nil || there {
			return first, err
		}
	}
}

// unpacked reports whether the snapshot of layer i is there.
func (s *Stack) unpacked(ctx context.Context, i int) (bool, error) {
	_, err := s.Snapshotter.Stat(ctx, s.Chain(i+1).String())
	if err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("look for the snapshot of layer %s: %w", s.Layers[i].Blob.Digest, err)
	}
	return err == nil, nil
}

// serial unpacks one layer after the other.
func (s *Stack) serial(ctx context.Context, next Arrivals, done func(context.Context, int) error) error {
	first, err := s.findFirst(ctx)
	if err != nil {
		return err
	}
	here := make([]bool, len(s.Layers))
	for i := range s.Layers {
		for !here[i] {
			k, err := next(ctx)
			if err != nil {
				return err
			}
			here[k] = true
		}
		if i >= first {
			if err := s.Apply(ctx, i, i > first); err != nil {
				return err
			}
		}
		if err := done(ctx, i); err != nil {
			return err
		}
	}
	return nil
}
