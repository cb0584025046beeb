// Package ctrd is this host's containerd: the only importer of its client.
//
// It owns how an image is found, walked, written, unpacked, named, pinned and
// checked there, and whether CRI shows it to the kubelet. Each part of Containerd owns
// one of these. It edits no configuration of containerd or k3s, knows nothing of peers,
// chunks, seed indexes or archives, and needs no capability: containerd itself unpacks.
//
// It works on a containerd that is dialled (1.6 and later) or embedded: the same
// client over an in-process metadata and content store below data_dir, which
// holds images but cannot run them.
//
// Invariant: an image name is written last, when every blob that it needs is
// committed, labelled and, where there is a snapshotter, unpacked.
package ctrd

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"seeder/store/ctrd/embedded"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/store/unpack"
)

// Embedded as the address stands for the in-process store.
const Embedded = "embedded"

// Auto as the address stands for the socket that Config.Find finds, as the snapshotter
// for the one that CRI uses.
const Auto = "auto"

// Config says which containerd and how. Empty fields stand for auto, k8s.io and
// the host's platform.
type Config struct {
	Address     string // auto, embedded, or the path of a socket
	Namespace   string
	Snapshotter string
	Root        string // of the embedded store
	// Find resolves auto, each time that there is no connection. The caller gives it
	// with auto: which containerd is the kubelet's is not known here.
	Find     func() (socket string, err error)
	Pin      bool   // label images so that the kubelet's garbage collection passes them over
	Platform string // e.g. linux/arm64; empty: the host's
	// LeaseTTL is when containerd drops a lease that nobody released, since a daemon
	// that is gone for good must not pin content forever. 0: DefaultLeaseTTL. It is
	// renewed after half of that.
	LeaseTTL time.Duration
	Log      *slog.Logger
}

// ErrUnavailable says that containerd is not there, or not now.
var ErrUnavailable = errors.New("containerd is not available")

// ErrExists says that a blob is in the content store already.
var ErrExists = errors.New("blob exists")

// ErrMismatch says that what was written of a blob has another size or digest.
var ErrMismatch = errors.New("not the bytes of the blob")

// Containerd is one containerd namespace, in parts. Each is safe for concurrent use, and
// holds its lock mu only while it looks at its own fields: none of them is held while
// another lock is taken.
type Containerd struct {
	Conn    *Conn
	Leases  *Leases
	Files   *Files
	Content *Content
	Runtime *Runtime
	Images  *Images
	Checks  *Checks
}

// Open prepares access. A dialled containerd need not be there yet.
func Open(cfg Config) (*Containerd, error) {
	if cfg.Address == "" {
		cfg.Address = Auto
	}
	if cfg.Address == Auto && cfg.Find == nil {
		return nil, errors.New("open containerd: the address auto needs a Find")
	}
	if cfg.Namespace == "" {
		cfg.Namespace = "k8s.io"
	}
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = Auto
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = DefaultLeaseTTL
	}
	c := &Conn{cfg: cfg, log: cfg.Log, spec: platforms.DefaultSpec()}
	if cfg.Platform != "" {
		p, err := platforms.Parse(cfg.Platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w", cfg.Platform, err)
		}
		c.spec = p
	}
	c.platform = platforms.Only(c.spec)
	if cfg.Address == Embedded {
		e, err := embedded.Open(cfg.Root)
		if err != nil {
			return nil, fmt.Errorf("open the embedded store in %s: %w", cfg.Root, err)
		}
		c.embedded, c.client, c.address = e, e.Client(), Embedded
	}
	return newContainerd(c), nil
}

// newContainerd puts the parts together.
func newContainerd(c *Conn) *Containerd {
	out := &Containerd{Conn: c, Leases: &Leases{c}, Files: &Files{conn: c}}
	out.Content = &Content{conn: c, leases: out.Leases, files: out.Files, removing: semaphore.NewWeighted(removingAll), damaged: map[digest.Digest]Stamp{}}
	out.Runtime = &Runtime{conn: c, content: out.Content, sides: &unpack.Choice{Log: c.log}}
	out.Images = &Images{conn: c, leases: out.Leases, content: out.Content, runtime: out.Runtime}
	out.Checks = &Checks{conn: c, files: out.Files, content: out.Content, runtime: out.Runtime, images: out.Images,
		checked: map[string]checked{}}
	c.gone = []func(){out.Files.forget, out.Runtime.forget}
	return out
}

// Close ends the connection. Calls that run fail.
func (c *Containerd) Close() error { return c.Conn.close() }
