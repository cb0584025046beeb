package ctrd

import (
	"context"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/metadata"
)

// Client is what is behind c.
func (c *Containerd) Client() *client.Client { return c.Conn.client }

// With is the same store with another configuration.
func (c *Containerd) With(cfg Config) (*Containerd, error) {
	cfg.Address = "unused"
	out, err := Open(cfg)
	if err == nil {
		out.Conn.embedded, out.Conn.client, out.Conn.address = c.Conn.embedded, c.Conn.client, Embedded
	}
	return out, err
}

// HideBlobs makes c read through containerd.
func (c *Containerd) HideBlobs() { c.Files.dir, c.Files.known = "", true }

// Behind puts another client of the embedded store behind c.
func (c *Containerd) Behind(make func(*metadata.DB) *client.Client) {
	c.Conn.client = make(c.Conn.embedded.DB())
}

// HoldRemoving keeps everything from being written into c, as while a damaged blob is
// removed, until release.
func (c *Containerd) HoldRemoving(ctx context.Context) (release func(), err error) {
	return func() { c.Content.removing.Release(removingAll) }, c.Content.removing.Acquire(ctx, removingAll)
}
