package ctrd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"seeder/store/ctrd/cri"
	"seeder/store/unpack"
)

// Runtime owns what turns an image into something that runs: the snapshotter, into which
// it is unpacked, and the CRI, which has to know it.
type Runtime struct {
	conn    *Conn
	content *Content
	sides   *unpack.Choice

	mu          sync.Mutex
	snapshotter string // resolved from auto
	noCRI       bool   // the socket serves no CRI
}

// SnapshotterName resolves auto: the snapshotter that CRI uses; overlayfs where there is no
// CRI, or where it does not say.
func (rt *Runtime) SnapshotterName(ctx context.Context) (string, error) {
	if rt.conn.cfg.Snapshotter != Auto {
		return rt.conn.cfg.Snapshotter, nil
	}
	rt.mu.Lock()
	name := rt.snapshotter
	rt.mu.Unlock()
	if name != "" {
		return name, nil
	}
	name, err := rt.askSnapshotter(ctx)
	if err != nil {
		return "", err
	}
	rt.conn.log.Debug("snapshotter found", "snapshotter", name)
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.snapshotter = name
	return name, nil
}

func (rt *Runtime) forget() {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.snapshotter, rt.noCRI = "", false
	rt.sides.Forget()
}

const defaultSnapshotter = "overlayfs"

func (rt *Runtime) askSnapshotter(ctx context.Context) (string, error) {
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil {
		return defaultSnapshotter, err
	}
	name, err := cri.Snapshotter(ctx, conn)
	if err != nil {
		return "", fmt.Errorf("ask CRI for its snapshotter: %w", rt.conn.fail(err))
	}
	return cmp.Or(name, defaultSnapshotter), nil
}

// cri is the connection to CRI, nil where the socket serves none.
func (rt *Runtime) cri(ctx context.Context) (grpc.ClientConnInterface, error) {
	if rt.conn.embedded != nil {
		return nil, nil
	}
	_, cl, err := rt.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.noCRI {
		return nil, nil
	}
	conn, _ := cl.Conn().(grpc.ClientConnInterface)
	return conn, nil
}

// CRI is what the kubelet's side of containerd says of itself.
type CRI struct {
	Served   bool   // the socket answers CRI requests
	Disabled bool   // there is no CRI plugin: disabled_plugins, or a containerd without one
	Reason   string // why the plugin is not served or the runtime not ready
	Discards bool   // discard_unpacked_layers: layers are thrown away after a pull; containerd 2.0 to 2.3 do not say
}

// CRI asks whether there is a CRI and how it does.
func (rt *Runtime) CRI(ctx context.Context) (CRI, error) {
	nctx, cl, err := rt.conn.use(ctx)
	if err != nil {
		return CRI{}, err
	}
	var out CRI
	// The plugin is io.containerd.grpc.v1.cri; since containerd 2 that of images,
	// which exports its options, is another one (io.containerd.cri.v1.images).
	plugins, err := cl.IntrospectionService().Plugins(nctx, "id==cri", "id==images")
	if err != nil {
		return CRI{}, fmt.Errorf("list containerd's plugins: %w", rt.conn.fail(err))
	}
	out.Disabled = true
	for _, p := range plugins.GetPlugins() {
		if p.GetID() == "cri" && p.GetType() == "io.containerd.grpc.v1" {
			out.Disabled = false
			out.Reason = p.GetInitErr().GetMessage()
		}
		if p.GetExports()["DiscardUnpackedLayers"] == "true" {
			out.Discards = true
		}
	}
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil {
		return out, err
	}
	st, err := cri.Ask(ctx, conn)
	if err != nil {
		return out, fmt.Errorf("ask CRI for its status: %w", rt.conn.fail(err))
	}
	out.Served, out.Discards = st.Served, out.Discards || st.Discards
	out.Reason = cmp.Or(st.Reason, out.Reason)
	return out, nil
}

// ImageID is the id by which CRI, and so the kubelet, knows the image that it has under ref:
// the digest of its config. It is empty where CRI has none, or where the socket serves no CRI.
func (rt *Runtime) ImageID(ctx context.Context, ref string) (string, error) {
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil {
		return "", err
	}
	id, err := cri.ImageID(ctx, conn, ref)
	if err != nil && !errdefs.IsNotImplemented(err) {
		return "", fmt.Errorf("ask CRI for %s: %w", ref, rt.conn.fail(err))
	}
	return id, nil
}

// askCRI says why CRI does not answer for ref with target, "" where it does, where
// the socket serves no CRI, or where Config.Platform is one that its host does not run.
func (rt *Runtime) askCRI(ctx context.Context, cs store, ref string, target ocispec.Descriptor) (reason string, err error) {
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil || !platforms.Default().Match(rt.conn.spec) {
		return "", err
	}
	id, err := cri.ImageID(ctx, conn, ref)
	if errdefs.IsNotImplemented(err) {
		rt.mu.Lock()
		rt.noCRI = true
		rt.mu.Unlock()
		return "", nil
	}
	if err != nil {
		return "CRI does not answer", rt.conn.fail(err)
	}
	if id == "" {
		return "CRI does not know the reference", nil
	}
	config, err := images.Config(ctx, cs, target, rt.conn.platform)
	if err != nil {
		return "the config is not readable", rt.conn.fail(err)
	}
	if id != config.Digest.String() {
		return "CRI still answers with " + id, nil
	}
	return "", nil
}

// awaitCRI waits until CRI answers for the record of target with its config.
func (rt *Runtime) awaitCRI(ctx context.Context, cl *client.Client, cs store, r record, target ocispec.Descriptor) error {
	ctx, cancel := context.WithTimeout(ctx, criWait)
	defer cancel()
	touched := false
	start := time.Now()
	var reason string
	for {
		now, err := rt.askCRI(ctx, cs, r.name, target)
		if err == nil && now == "" {
			return nil
		}
		if ctx.Err() != nil && reason != "" {
			err = nil // the wait ended while it was asked; what it said before is why
		} else {
			reason = now
		}
		if !touched && time.Since(start) > criTouch {
			touched = true
			err = errors.Join(err, update(ctx, cl.ImageService(), images.Image{Name: r.name, Target: target, Labels: r.labels}))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("image %s is stored, but CRI does not show it: %s: %w", r.name, reason, errors.Join(err, context.Cause(ctx)))
		case <-time.After(criPoll):
		}
	}
}
