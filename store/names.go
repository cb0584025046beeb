package store

import (
	"context"

	"github.com/opencontainers/go-digest"

	"seeder/store/ctrd"
	"seeder/store/imageref"
)

// Names is what this host's containerd has under which names, and what keeps it there. It
// writes no blob. It is safe for concurrent use.
type Names struct{ ctrd *ctrd.Containerd }

// Local is an image of this host's containerd.
type Local = ctrd.Local

// List maps the references that have an image record to their targets.
func (n *Names) List(ctx context.Context) (map[string]digest.Digest, error) {
	return n.ctrd.Images.List(ctx)
}

// Check says whether ref is at target, complete and visible to the kubelet;
// where it is not, reason says what lacks.
func (n *Names) Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error) {
	return n.ctrd.Checks.Check(ctx, ref, target)
}

// Intact says whether the last Check of ref found it ready and the blobs that it saw are
// still there, as far as that can be told without asking anybody.
func (n *Names) Intact(ctx context.Context, ref string) bool { return n.ctrd.Checks.Intact(ctx, ref) }

// Release takes the pins off an image: the kubelet may collect it from now on.
func (n *Names) Release(ctx context.Context, ref string) error { return n.ctrd.Images.Unpin(ctx, ref) }

// ReleaseOthers takes the pins off all versions of the references in wanted that are
// none of their targets there, and says which names had one.
func (n *Names) ReleaseOthers(ctx context.Context, wanted map[string][]digest.Digest) ([]string, error) {
	return n.ctrd.Images.UnpinOthers(ctx, wanted)
}

// Remove deletes an image's names; containerd collects what only they needed. It
// returns how many bytes of blobs that freed; snapshots are not counted.
func (n *Names) Remove(ctx context.Context, ref string) (freedBytes int64, err error) {
	return n.ctrd.Images.Remove(ctx, ref)
}

// FromRegistry reports whether ref was pulled from a registry.
func (n *Names) FromRegistry(ctx context.Context, ref string) (bool, error) {
	return n.ctrd.Images.FromRegistry(ctx, ref)
}

// Preloaded reports whether k3s has brought ref from its agent/images.
func (n *Names) Preloaded(ctx context.Context, ref string) (bool, error) {
	return n.ctrd.Images.Preloaded(ctx, ref)
}

// InUse names the containers that were made from the image of ref.
func (n *Names) InUse(ctx context.Context, ref string) ([]string, error) {
	return n.ctrd.Images.InUse(ctx, ref)
}

// KeepPrevious protects those of targets that are here from garbage collection, and
// no others that it protected before. It has to be called every few hours.
func (n *Names) KeepPrevious(ctx context.Context, targets []digest.Digest) error {
	return n.ctrd.Images.KeepPrevious(ctx, targets)
}

// Has reports whether the target of an image is here, be it named or kept.
func (n *Names) Has(ctx context.Context, target digest.Digest) bool {
	_, here, err := n.ctrd.Content.Has(ctx, target)
	return err == nil && here
}

// Discard releases an earlier target of ref, which stands for another one now.
func (n *Names) Discard(ctx context.Context, ref string, target digest.Digest) error {
	return n.ctrd.Images.Discard(ctx, ref, target)
}

// Local says what containerd has under ref: its ids are the digests by which Docker
// may know the same image.
func (n *Names) Local(ctx context.Context, ref string) (Local, error) {
	ref, err := imageref.Normalize(ref)
	if err != nil {
		return Local{}, err
	}
	return n.ctrd.Images.Local(ctx, ref)
}

// HeedsPins reports whether containerd tells the kubelet what is pinned.
func (n *Names) HeedsPins() bool { return n.ctrd.Conn.HeedsPins() }

// Changes wakes up after image records changed.
func (n *Names) Changes(ctx context.Context) <-chan struct{} { return n.ctrd.Checks.Changes(ctx) }

// Health asks whether containerd answers.
func (n *Names) Health(ctx context.Context) (address, version string, err error) {
	return n.ctrd.Conn.Health(ctx)
}
