package ctrd

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/ctrd/embedded"
	"seeder/store/grpcerr"
)

// Conn owns the connection: the socket, the client and the namespace, what containerd says
// of itself, and the platform of this host.
type Conn struct {
	cfg      Config
	log      *slog.Logger
	spec     ocispec.Platform
	platform platforms.MatchComparer
	embedded *embedded.Store // nil for a dialled one
	gone     []func()        // called when containerd went away, to drop what was learned of it

	mu      sync.Mutex
	client  *client.Client
	address string // of client
	version string // of containerd, as Health was told last
}

func (c *Conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.embedded != nil {
		err = c.embedded.Close()
	} else if c.client != nil {
		err = c.client.Close()
	}
	c.client = nil
	return err
}

// StoreOnly reports whether this is the embedded store, which unpacks nothing.
func (c *Conn) StoreOnly() bool { return c.embedded != nil }

// HoldsAll reports whether this host is meant to hold every platform of an image:
// an embedded store that nobody gave a platform.
func (c *Conn) HoldsAll() bool { return c.embedded != nil && c.cfg.Platform == "" }

// Platform is the platform that this host runs, e.g. linux/amd64.
func (c *Conn) Platform() string { return platforms.Format(platforms.Normalize(c.spec)) }

// Runs reports whether this host runs images of a platform.
func (c *Conn) Runs(platform string) bool { return c.host().Runs(platform) }

func (c *Conn) host() artifact.Host { return artifact.Host{Platform: c.platform, All: c.HoldsAll()} }

// use returns the client and a context in the namespace.
func (c *Conn) use(ctx context.Context) (context.Context, *client.Client, error) {
	ctx = namespaces.WithNamespace(ctx, c.cfg.Namespace)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return ctx, c.client, nil
	}
	address, err := c.findSocket()
	if err != nil {
		return nil, nil, err
	}
	cl, err := client.New(address, client.WithTimeout(2*time.Second))
	if err != nil {
		return nil, nil, fmt.Errorf("dial containerd at %s: %w", address, err)
	}
	c.client, c.address = cl, address
	return ctx, cl, nil
}

// findSocket resolves auto.
func (c *Conn) findSocket() (string, error) {
	if c.cfg.Address != Auto {
		return c.cfg.Address, nil
	}
	socket, err := c.cfg.Find()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return socket, nil
}

// Address is the socket in use, or what is configured while none is.
func (c *Conn) Address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.address != "" {
		return c.address
	}
	return c.cfg.Address
}

// fail explains an error of containerd: errors.Is finds fs.ErrNotExist and
// ErrUnavailable in it.
func (c *Conn) fail(err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	case grpcerr.IsClosed(err): // forget, for another caller: its code is that of a cancelled context, which nothing was
		return fmt.Errorf("%w: its connection was closed meanwhile", ErrUnavailable)
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("%w: %s does not answer: %w", ErrUnavailable, c.Address(), grpcerr.Plain(err))
	}
	return err
}

// Health asks for the version.
func (c *Conn) Health(ctx context.Context) (address, version string, err error) {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return c.Address(), "", err
	}
	if c.embedded != nil {
		return Embedded, "in-process", nil
	}
	v, err := cl.Version(ctx)
	if err != nil {
		c.forget()
		if !errdefs.IsUnavailable(err) {
			err = fmt.Errorf("%s does not answer: %w", c.Address(), grpcerr.Plain(err))
		}
		return c.Address(), "", c.fail(err)
	}
	c.mu.Lock()
	c.version = v.Version
	c.mu.Unlock()
	return c.Address(), v.Version, nil
}

// HeedsPins reports whether this containerd tells the kubelet what is pinned, as far
// as Health knows its version.
func (c *Conn) HeedsPins() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return heedsPins(c.version)
}

// heedsPins: 1.6.25, 1.7.3 and later do. One whose version says nothing does.
func heedsPins(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.%d", &major, &minor, &patch); n < 3 || major != 1 {
		return true
	}
	return minor > 7 || minor == 7 && patch >= 3 || minor == 6 && patch >= 25
}

// forget drops what was learned of a containerd that went away: another version
// with another configuration may come back.
func (c *Conn) forget() {
	c.mu.Lock()
	if c.cfg.Address == Auto && c.client != nil {
		c.client.Close()
		c.client, c.address = nil, ""
	}
	c.mu.Unlock()
	for _, forget := range c.gone {
		forget()
	}
}

// maxNamespaces bounds how many namespaces are looked into.
const maxNamespaces = 64

// Namespaces are the names of the images in each namespace, records by digest and
// by image id aside.
func (c *Conn) Namespaces(ctx context.Context) (map[string][]string, error) {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	list, err := cl.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", c.fail(err))
	}
	out := map[string][]string{}
	for _, ns := range list[:min(len(list), maxNamespaces)] {
		imgs, err := cl.ImageService().List(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return nil, fmt.Errorf("list the images of namespace %s: %w", ns, c.fail(err))
		}
		out[ns] = []string{}
		for _, i := range imgs {
			if !strings.HasPrefix(i.Name, "sha256:") && !strings.Contains(i.Name, "@") {
				out[ns] = append(out[ns], i.Name)
			}
		}
		slices.Sort(out[ns])
	}
	return out, nil
}

// Collect has the embedded store collect garbage; a dialled containerd does so by itself.
func (c *Conn) Collect(ctx context.Context) error {
	return c.withEmbedded(ctx, (*embedded.Store).Collect)
}

// CollectIngests removes from the embedded store the ingests that nobody goes on with; a
// dialled containerd does so by itself.
func (c *Conn) CollectIngests(ctx context.Context) error {
	return c.withEmbedded(ctx, (*embedded.Store).CollectIngests)
}

func (c *Conn) withEmbedded(ctx context.Context, do func(*embedded.Store, context.Context) error) error {
	if c.embedded == nil {
		return nil
	}
	ctx, _, err := c.use(ctx)
	if err != nil {
		return err
	}
	return do(c.embedded, ctx)
}
