package ctrd_test

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/ctrd"
)

// TestRemovingWaitsNoLongerThanItsCaller: who writes a blob while a damaged one is removed,
// which takes a garbage collection of containerd, waits for that, and no longer than its
// context; so does who wants to remove one while a blob is written.
func TestRemovingWaitsNoLongerThanItsCaller(t *testing.T) {
	t.Parallel()
	c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	release, err := c.HoldRemoving(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := []byte("blob")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(p), Size: int64(len(p))}
	stopped := errors.New("the daemon stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { done <- c.Content.WriteWhole(ctx, desc, p, nil) }()
	go func() { done <- c.Content.RemoveDamaged(ctx, desc.Digest) }()
	cancel(stopped)
	for range 2 {
		if err := <-done; !errors.Is(err, stopped) {
			t.Errorf("got %v, want the cause of the end of the context", err)
		}
	}
	release()
	if err := c.Content.WriteWhole(t.Context(), desc, p, nil); err != nil {
		t.Errorf("after the removal: %v", err)
	}
}
