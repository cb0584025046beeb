// Package ctrd is this host's containerd: the only importer of its client.
//
// It owns how an image is found, walked, written, unpacked, named, pinned and
// checked there, and the CRI question whether the kubelet sees it. It edits no
// configuration of containerd or k3s, knows nothing of peers, chunks or seed
// indexes, and needs no capability: unpacking is containerd's own work.
//
// It works on a containerd that is dialled (1.6 and later) or embedded: the same
// client over an in-process metadata and content store below data_dir, which
// holds images but cannot run them.
//
// Invariant: an image name is written last, when every blob that it needs is
// committed, labelled and, where there is a snapshotter, unpacked.
package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/imageref"
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
	// Find resolves auto, each time that there is no connection. Whoever opens with auto
	// gives it: which containerd is the kubelet's is not known here.
	Find     func() (socket string, err error)
	Pin      bool   // label images so that the kubelet's garbage collection passes them over
	Platform string // e.g. linux/arm64; empty: the host's
	// LeaseTTL is when containerd drops a lease that nobody released, since a daemon
	// that is gone for good must not pin content for ever. 0: DefaultLeaseTTL. It is
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
// holds its lock only while it looks at its own fields: no two locks nest.
type Containerd struct {
	Conn    *Conn
	Leases  *Leases
	Files   *Files
	Content *Content
	Runtime *Runtime
	Images  *Images
	Checks  *Checks
}

// Conn owns the connection: the socket, the client and the namespace, what containerd says
// of itself, and the platform of this host.
type Conn struct {
	cfg      Config
	log      *slog.Logger
	spec     ocispec.Platform
	platform platforms.MatchComparer
	embedded *embedded // nil for a dialled one
	gone     []func()  // called when containerd went away, to drop what was learned of it

	mu      sync.Mutex
	client  *client.Client
	address string // of client
	version string // of containerd, as Health was told last
}

// Leases owns seeder's leases, which keep what is written from garbage collection until
// it has a name.
type Leases struct{ conn *Conn }

// Files owns the way to blobs as files, where this process can read them.
type Files struct {
	conn *Conn

	mu    sync.Mutex
	dir   string // of the content store's blobs, once known; empty where it cannot be read
	known bool
}

// Content owns the blobs: how they are read, walked, written, verified and replaced.
type Content struct {
	conn   *Conn
	leases *Leases
	files  *Files

	mu      sync.Mutex
	damaged map[digest.Digest]Stamp
}

// Runtime owns what turns an image into something that runs: the snapshotter, into which
// it is unpacked, and the CRI, which has to know it.
type Runtime struct {
	conn    *Conn
	content *Content

	mu          sync.Mutex
	snapshotter string // resolved from auto
	noCRI       bool   // the socket serves no CRI
}

// Images owns the image records: names, targets, labels and pins, and which earlier
// versions are kept.
type Images struct {
	conn    *Conn
	leases  *Leases
	content *Content
	runtime *Runtime

	mu    sync.Mutex
	loose map[string]bool // the names that List found without a pin
}

// Checks owns the answer to whether an image is ready, and what may have changed it since.
type Checks struct {
	conn    *Conn
	files   *Files
	content *Content
	runtime *Runtime
	images  *Images

	mu      sync.Mutex
	checked map[string]checked // each ref that Check found ready
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
		e, err := openEmbedded(cfg.Root)
		if err != nil {
			return nil, fmt.Errorf("open the embedded store in %s: %w", cfg.Root, err)
		}
		c.embedded, c.client, c.address = e, e.client, Embedded
	}
	return newContainerd(c), nil
}

// newContainerd puts the parts together.
func newContainerd(c *Conn) *Containerd {
	out := &Containerd{Conn: c, Leases: &Leases{c}, Files: &Files{conn: c}}
	out.Content = &Content{conn: c, leases: out.Leases, files: out.Files, damaged: map[digest.Digest]Stamp{}}
	out.Runtime = &Runtime{conn: c, content: out.Content}
	out.Images = &Images{conn: c, leases: out.Leases, content: out.Content, runtime: out.Runtime}
	out.Checks = &Checks{conn: c, files: out.Files, content: out.Content, runtime: out.Runtime, images: out.Images,
		checked: map[string]checked{}}
	c.gone = []func(){out.Files.forget, out.Runtime.forget}
	return out
}

// Close ends the connection. Calls that run fail.
func (c *Containerd) Close() error { return c.Conn.close() }

func (c *Conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.embedded != nil {
		err = c.embedded.close()
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
func (c *Conn) Runs(platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && c.platform.Match(p)
}

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
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("%w: %s does not answer: %w", ErrUnavailable, c.Address(), plain(err))
	}
	return err
}

// Explain says what an error of containerd means: errors.Is finds fs.ErrNotExist and
// ErrUnavailable in it.
func (c *Content) Explain(err error) error { return c.conn.fail(err) }

// ContentStore is containerd's content store, to be used with the context that comes
// with it.
func (c *Content) ContentStore(ctx context.Context) (context.Context, content.Store, error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, nil, err
	}
	return ctx, cl.ContentStore(), nil
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
			err = fmt.Errorf("%s does not answer: %w", c.Address(), plain(err))
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

// List maps image names to targets.
func (im *Images) List(ctx context.Context) (map[string]digest.Digest, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	imgs, err := cl.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", im.conn.fail(err))
	}
	out := make(map[string]digest.Digest, len(imgs))
	unpinned := map[string]bool{}
	for _, i := range imgs {
		out[i.Name] = i.Target.Digest
		if im.conn.cfg.Pin && i.Labels[labelPinned] == "" {
			unpinned[i.Name] = true
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.loose = unpinned
	return out, nil
}

// Has asks the content store for a blob. One that has no file is not there: containerd
// writes the file before it books the blob, and need not be asked.
func (c *Content) Has(ctx context.Context, dgst digest.Digest) (bytes int64, ok bool, err error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return 0, false, err
	}
	if c.files.fileless(ctx, dgst) || c.Damaged(ctx, dgst) {
		return 0, false, nil
	}
	info, err := cl.ContentStore().Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for blob %s: %w", dgst, c.conn.fail(err))
	}
	return info.Size, true, nil
}

// Changes wakes up after image records changed, and after the connection came
// back. It reconnects by itself; the channel closes when ctx ends.
func (ck *Checks) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() { // ends with ctx; whoever reads out waits for its close
		defer close(out)
		for {
			ck.follow(ctx, out)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return out
}

// follow passes events on until the stream breaks.
func (ck *Checks) follow(ctx context.Context, out chan<- struct{}) {
	hint := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	nsCtx, cl, err := ck.conn.use(ctx)
	if err != nil {
		return
	}
	nsCtx, cancel := context.WithCancel(nsCtx)
	defer cancel()
	events, errs := cl.EventService().Subscribe(nsCtx, `topic~="/images/"`, `topic=="/content/delete"`, `topic=="/snapshot/remove"`, `topic=="/containers/delete"`)
	hint()
	for {
		select {
		case <-ctx.Done():
			return
		case <-errs:
			return
		case e := <-events:
			if e != nil && e.Namespace == ck.conn.cfg.Namespace {
				ck.noteSnapshot(e.Event)
				hint()
			}
		}
	}
}

// noteSnapshot takes note of a removed snapshot: nothing else tells of it between
// two looks at everything.
func (ck *Checks) noteSnapshot(e typeurl.Any) {
	v, err := typeurl.UnmarshalAny(e)
	removed, ok := v.(*apievents.SnapshotRemove)
	if err != nil || !ok {
		return
	}
	ck.mu.Lock()
	defer ck.mu.Unlock()
	for ref, seen := range ck.checked {
		if seen.top != "" && removed.Key == seen.top.String() {
			seen.unstacked = true
			ck.checked[ref] = seen
		}
	}
}

// Delete removes an image name, and the records that only it needed: that by
// digest, and that by image id. The name itself goes last, so that a call that
// was cut off is finished by the next one.
func (im *Images) Delete(ctx context.Context, ref string) error {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	is := cl.ImageService()
	img, err := is.Get(ctx, ref)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, im.conn.fail(err))
	}
	all, err := is.List(ctx, "target.digest=="+img.Target.Digest.String())
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, im.conn.fail(err))
	}
	for _, name := range append(onlyFor(ref, all), ref) {
		var opts []images.DeleteOpt
		if name == ref {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := is.Delete(ctx, name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, im.conn.fail(err))
		}
	}
	return im.conn.collect(ctx)
}

// Remove is Delete that says how many bytes of blobs containerd collected with it.
func (im *Images) Remove(ctx context.Context, ref string) (freedBytes int64, err error) {
	var blobs []Blob
	if target, err := im.Resolve(ctx, ref); err == nil {
		blobs, _ = im.content.Walk(ctx, target) // of one that is not whole nothing is counted
	}
	if err := im.Delete(ctx, ref); err != nil {
		return 0, err
	}
	for _, b := range blobs {
		if _, here, err := im.content.Has(ctx, b.Digest); err == nil && !here {
			freedBytes += b.Size
		}
	}
	return freedBytes, nil
}

// onlyFor names, of all records of one target, those that ref needs and no other
// name does.
func onlyFor(ref string, all []images.Image) []string {
	var ids []string
	byDigest := map[string]string{} // by repository
	repos := map[string]int{}       // how many other tags each has
	tags := 0
	for _, i := range all {
		repo, tag := imageref.Repository(i.Name)
		switch {
		case i.Name == ref:
		case strings.HasPrefix(i.Name, "sha256:"):
			ids = append(ids, i.Name)
		case !tag:
			byDigest[repo] = i.Name
		default:
			repos[repo]++
			tags++
		}
	}
	var out []string
	if repo, tag := imageref.Repository(ref); tag && repos[repo] == 0 && byDigest[repo] != "" {
		out = append(out, byDigest[repo])
		delete(byDigest, repo)
	}
	if tags == 0 && len(byDigest) == 0 {
		out = append(out, ids...)
	}
	return out
}

// Collect has the embedded store collect garbage; a dialled containerd does so by itself.
func (c *Conn) Collect(ctx context.Context) error {
	ctx, _, err := c.use(ctx)
	if err != nil {
		return err
	}
	return c.collect(ctx)
}

// collect runs the embedded store's garbage collection; a dialled containerd
// runs its own.
func (c *Conn) collect(ctx context.Context) error {
	if c.embedded == nil {
		return nil
	}
	if _, err := c.embedded.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}
