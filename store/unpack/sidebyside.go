package unpack

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"seeder/internal/wait"
)

const (
	// prepareWait is how long containerd may take to make the directory of a snapshot.
	prepareWait = time.Minute
	// cleanupWait is how long it may take to remove one that is not needed; what is left
	// goes with the lease.
	cleanupWait = 10 * time.Second
	// endWait is how long either may still take once the work was told to end: a containerd
	// that hangs must not hold up the end of the daemon.
	endWait = 2 * time.Second
)

// work is All for layers side by side.
type work struct {
	*Stack
	first int // the lowest layer that was not unpacked; it is prepared on those below it
	// tries are by layer; one belongs to the goroutine that unpacks it until done is closed, then to
	// who commits.
	tries []*try
	// lowers are the directories of what is committed, from the top down; unknown says that
	// somebody else committed one of them, whose directory is not known here.
	lowers  []string
	unknown bool
}

// try is a layer that is unpacked, not committed yet.
type try struct {
	done     chan struct{}
	ok       bool
	key      string   // of its active snapshot; "" while there is none
	upper    string   // its directory
	lowers   []string // those below it, which it was unpacked on
	unlisted []string // directories that containerd made without being told how
	again    string   // why it has to be unpacked on top of those below it; "" where not
}

// sideBySide unpacks layers as they arrive, each without those below it, and commits them
// from the bottom up, as containerd's own unpacker does (core/unpack, since 2.2).
func (s *Stack) sideBySide(ctx context.Context, next Arrivals, done func(context.Context, int) error) error {
	w := &work{Stack: s}
	for range s.Layers {
		w.tries = append(w.tries, &try{done: make(chan struct{})})
	}
	first, err := s.findFirst(ctx)
	if err != nil {
		return err
	}
	w.first = first
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.begin(gctx, group, next) })
	group.Go(func() error { return w.commitAll(gctx, done) })
	err = group.Wait()
	w.drop(ctx, w.tries...)
	return err
}

// begin unpacks each layer that arrives, as soon as there is a slot for it.
func (w *work) begin(ctx context.Context, group *errgroup.Group, next Arrivals) error {
	for range w.Layers {
		i, err := next(ctx)
		if err != nil {
			return err
		}
		if i < w.first {
			w.tries[i].ok = true
			close(w.tries[i].done)
			continue
		}
		if err := w.Slots.take(ctx); err != nil {
			return err
		}
		group.Go(func() error {
			t := w.tries[i]
			defer w.Slots.give()
			defer close(t.done)
			if i == w.first {
				return w.unpackOn(ctx, i, t)
			}
			return w.unpackAlone(ctx, i, t)
		})
	}
	return nil
}

// unpackOn unpacks layer i on top of those below it.
func (w *work) unpackOn(ctx context.Context, i int, t *try) error {
	parent := ""
	if i > 0 {
		parent = w.Chain(i).String()
	}
	mounts, err := w.prepare(ctx, i, t, parent)
	if err != nil {
		return err
	}
	if t.upper = bound(mounts); t.upper == "" {
		t.upper, t.lowers = directories(mounts)
	}
	return w.apply(ctx, i, t, mounts)
}

// unpackAlone unpacks layer i into a snapshot that has nothing below it.
func (w *work) unpackAlone(ctx context.Context, i int, t *try) error {
	start := time.Now()
	mounts, err := w.prepare(ctx, i, t, "")
	if err != nil {
		return err
	}
	if t.upper = bound(mounts); t.upper == "" {
		t.again, t.ok = "its snapshot is not one directory that can be written to", true
		return nil
	}
	if _, err := os.Lstat(w.seen(t.upper)); err != nil {
		t.again, t.ok = err.Error(), true
		return nil
	}
	if err := w.apply(ctx, i, t, overlaid(mounts[0])); err != nil {
		return err
	}
	if t.unlisted, err = unlisted(w.seen(t.upper), start); err != nil {
		t.again = err.Error()
	}
	return nil
}

// seen is where this process sees a directory of containerd's host.
func (w *work) seen(dir string) string { return filepath.Join(w.Root, dir) }

func (w *work) seenAll(dirs []string) (out []string) {
	for _, dir := range dirs {
		out = append(out, w.seen(dir))
	}
	return out
}

func (w *work) prepare(ctx context.Context, i int, t *try, parent string) ([]mount.Mount, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	key := fmt.Sprintf(snapshots.UnpackKeyFormat, rand.Text(), w.Chain(i+1))
	// A call that is given up may still be carried out after the snapshot was removed.
	ctx, cancel := outlive(ctx, prepareWait)
	defer cancel()
	mounts, err := w.Snapshotter.Prepare(ctx, key, parent)
	if err != nil {
		return nil, fmt.Errorf("prepare the snapshot of layer %s: %w", w.Layers[i].Blob.Digest, err)
	}
	t.key = key
	return mounts, nil
}

// outlive is a context for a call that takes at most so long, and that goes on for endWait
// where ctx ends.
func outlive(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithTimeout(ctx, most)
	out, cancel := wait.Outlive(ctx, endWait)
	return out, func() { cancel(); stop() }
}

func (w *work) apply(ctx context.Context, i int, t *try, mounts []mount.Mount) error {
	layer := w.Layers[i]
	got, err := w.Differ.Apply(ctx, layer.Blob, mounts, Synced...)
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", layer.Blob.Digest, err)
	}
	if got.Digest != layer.Diff.Digest {
		return fmt.Errorf("unpack layer %s: it unpacks to %s, the image's config says %s", layer.Blob.Digest, got.Digest, layer.Diff.Digest)
	}
	t.ok = true
	return nil
}

// bound is the directory of a snapshot with nothing below it, "" where there is not one
// that can be written to.
func bound(mounts []mount.Mount) string {
	if len(mounts) != 1 || mounts[0].Type != "bind" || mounts[0].ReadOnly() {
		return ""
	}
	return mounts[0].Source
}

// overlaid is the mount of a snapshot with nothing below it, of which containerd's differ
// is to know that something will be: it writes a deletion as overlayfs has it, and does not
// carry it out, where the mount is of that type
// (https://github.com/containerd/containerd/issues/13030).
func overlaid(m mount.Mount) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + m.Source}}}
}

// directories of an overlay: its own, and those below it from the top down.
func directories(mounts []mount.Mount) (upper string, lowers []string) {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = dir
			} else if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lowers = strings.Split(dirs, ":")
			}
		}
	}
	return upper, lowers
}

// commitAll puts the layers on top of each other, from the bottom up.
func (w *work) commitAll(ctx context.Context, done func(context.Context, int) error) error {
	for i, t := range w.tries {
		select {
		case <-t.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !t.ok {
			return nil // who unpacked it says why
		}
		if i >= w.first {
			if err := w.commit(ctx, i, t); err != nil {
				return err
			}
		}
		if err := done(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// commit makes the snapshot of layer i visible, on top of the one below it.
func (w *work) commit(ctx context.Context, i int, t *try) error {
	var on []snapshots.Opt
	if i == w.first {
		w.lowers = w.seenAll(t.lowers)
	} else if why := w.differs(t); why != "" {
		w.Log.Debug("layer is unpacked again, on top of those below it", "layer", w.Layers[i].Blob.Digest, "reason", why)
		w.drop(ctx, t)
		if err := w.Slots.take(ctx); err != nil {
			return err
		}
		err := w.unpackOn(ctx, i, t)
		w.Slots.give()
		if err != nil {
			return err
		}
		w.lowers, w.unknown = w.seenAll(t.lowers), false
	} else {
		on = append(on, snapshots.WithParent(w.Chain(i).String()))
	}
	err := w.Snapshotter.Commit(ctx, w.Chain(i+1).String(), t.key, on...)
	switch {
	case errdefs.IsAlreadyExists(err):
		w.unknown = true
		w.drop(ctx, t)
		return nil
	case err != nil:
		return fmt.Errorf("commit the snapshot of layer %s: %w", w.Layers[i].Blob.Digest, err)
	}
	t.key = ""
	w.lowers = append([]string{w.seen(t.upper)}, w.lowers...)
	return nil
}

// differs says why a layer has to be unpacked on top of those below it, "" where that would
// make the same of it.
func (w *work) differs(t *try) string {
	if t.again != "" {
		return t.again
	}
	if w.unknown {
		return "a layer below it was unpacked by somebody else"
	}
	for _, rel := range t.unlisted {
		if why := inherits(w.seen(t.upper), rel, w.lowers); why != "" {
			return why
		}
	}
	return ""
}

// drop removes the snapshots of layers that are not committed. What stays behind goes with
// the lease.
func (w *work) drop(ctx context.Context, tries ...*try) {
	ctx, cancel := outlive(ctx, cleanupWait) // for all together
	defer cancel()
	for _, t := range tries {
		if t.key == "" {
			continue
		}
		if err := w.Snapshotter.Remove(ctx, t.key); err != nil && !errdefs.IsNotFound(err) {
			w.Log.Debug("failed to remove a snapshot that is not needed", "snapshot", t.key, "err", err)
		}
		t.key = ""
	}
}
