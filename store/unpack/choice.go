package unpack

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/userns"
)

// Slots are taken by layers that are being unpacked, those of all images together.
type Slots chan struct{}

// NewSlots are n slots.
func NewSlots(n int) Slots { return make(Slots, n) }

func (s Slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s Slots) give() { <-s }

// Choice is whether layers are unpacked side by side by one containerd.
type Choice struct {
	Log *slog.Logger

	mu    sync.Mutex
	known bool
	slots Slots // nil: one after the other
}

// Forget has the next containerd asked anew.
func (c *Choice) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = false
}

// Slots are one for each core, nil where layers are unpacked one after the other. Why is
// logged once for each containerd.
func (c *Choice) Slots(ctx context.Context, is introspection.Service, snapshotter string) (Slots, error) {
	c.mu.Lock()
	known, slots := c.known, c.slots
	c.mu.Unlock()
	if known {
		return slots, nil
	}
	why, err := whyInTurn(ctx, is, snapshotter)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known { // somebody else was faster: there is one set of slots
		return c.slots, nil
	}
	c.known, c.slots = true, nil
	if why != "" {
		c.Log.Info("layers are unpacked one after the other", "snapshotter", snapshotter, "reason", why)
		return nil, nil
	}
	c.slots = NewSlots(runtime.GOMAXPROCS(0))
	c.Log.Info("layers are unpacked side by side", "snapshotter", snapshotter, "at_once", cap(c.slots))
	return c.slots, nil
}

// whyInTurn says why layers cannot be unpacked side by side, "" where they can.
func whyInTurn(ctx context.Context, is introspection.Service, snapshotter string) (string, error) {
	switch {
	case runtime.GOMAXPROCS(0) < 2:
		return "this host has one core", nil
	case userns.RunningInUserNS():
		return "this is a user namespace, in which overlayfs cannot note deletions", nil
	case snapshotter != "overlayfs":
		return "only overlayfs is known to do it", nil
	}
	plugins, err := is.Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+snapshotter)
	if err != nil {
		return "", fmt.Errorf("ask containerd for the capabilities of snapshotter %s: %w", snapshotter, err)
	}
	for _, p := range plugins.GetPlugins() {
		if slices.Contains(p.GetCapabilities(), snapshots.RebaseCap) {
			return "", nil
		}
	}
	return "this containerd lacks the capability " + snapshots.RebaseCap + ", which 2.2 and later have outside user namespaces", nil
}
