package ctrd

import (
	"context"

	"github.com/containerd/containerd/v2/client"
)

// Client is what is behind c.
func (c *Containerd) Client() *client.Client { return c.client }

// With is the same store with another configuration.
func (c *Containerd) With(cfg Config) (*Containerd, error) {
	cfg.Address = "unused"
	out, err := Open(cfg)
	if err == nil {
		out.embedded, out.client, out.address, out.noCRI = c.embedded, c.client, Embedded, true
	}
	return out, err
}

// Collect runs the embedded store's garbage collection.
func (c *Containerd) Collect(ctx context.Context) error { return c.collect(ctx) }

// HideBlobs makes c read through containerd.
func (c *Containerd) HideBlobs() { c.blobDir, c.blobDirKnown = "", true }
