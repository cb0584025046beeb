package ctrd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/unpack"
)

// Unpacker unpacks the layers of one image for this host's platform through
// containerd's own differ and snapshotter.
type Unpacker struct {
	runtime     *Runtime
	target      ocispec.Descriptor
	snapshotter string
	config      digest.Digest
	layers      []rootfs.Layer
}

// Unpacker reads manifest and config of target, which must be here; the layers
// need not be. It is nil where this host unpacks nothing.
func (rt *Runtime) Unpacker(ctx context.Context, target ocispec.Descriptor) (*Unpacker, error) {
	if rt.conn.embedded != nil {
		return nil, nil
	}
	ctx, cl, err := rt.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	sn, err := rt.SnapshotterName(ctx)
	if err != nil {
		return nil, err
	}
	config, layers, err := rt.rootLayers(ctx, rt.content.once(cl), target)
	if err != nil {
		return nil, err
	}
	return &Unpacker{runtime: rt, target: target, snapshotter: sn, config: config, layers: layers}, nil
}

// rootLayers pairs the layers of this platform's manifest with their diff ids,
// which its config has.
func (rt *Runtime) rootLayers(ctx context.Context, cs store, target ocispec.Descriptor) (config digest.Digest, _ []rootfs.Layer, _ error) {
	m, err := images.Manifest(ctx, cs, target, rt.conn.platform)
	if err != nil {
		return "", nil, fmt.Errorf("read the manifest of %s for %s: %w", target.Digest, rt.conn.Platform(), rt.conn.fail(err))
	}
	if !images.IsConfigType(m.Config.MediaType) { // containerd unpacks nothing of it, either
		return m.Config.Digest, nil, nil
	}
	diffIDs, err := images.RootFS(ctx, cs, m.Config)
	if err != nil {
		return "", nil, fmt.Errorf("read config %s: %w", m.Config.Digest, rt.conn.fail(err))
	}
	if len(diffIDs) != len(m.Layers) {
		return "", nil, fmt.Errorf("image %s is damaged: its manifest has %d layers and its config %d", target.Digest, len(m.Layers), len(diffIDs))
	}
	var out []rootfs.Layer
	for i, l := range m.Layers {
		out = append(out, rootfs.Layer{Blob: l, Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffIDs[i]}})
	}
	return m.Config.Digest, out, nil
}

// Layers are the blobs to unpack, from the bottom up.
func (u *Unpacker) Layers() []digest.Digest {
	var out []digest.Digest
	for _, l := range u.layers {
		out = append(out, l.Blob.Digest)
	}
	return out
}

// All unpacks the layers as they arrive, side by side where the snapshotter can do that.
// done is called for each of them, from the bottom up, when it is unpacked.
func (u *Unpacker) All(ctx context.Context, next unpack.Arrivals, done func(ctx context.Context, i int) error) error {
	nctx, cl, err := u.runtime.conn.use(ctx)
	if err != nil {
		return err
	}
	slots, err := u.runtime.sides.Slots(nctx, cl.IntrospectionService(), u.snapshotter)
	if err != nil {
		return u.runtime.conn.fail(err)
	}
	if err := u.stack(cl, slots).All(nctx, next, done); err != nil {
		return u.runtime.conn.fail(err)
	}
	return nil
}

// Apply unpacks layer i on top of those below it, which are unpacked; a layer that is
// unpacked already is left as it is.
func (u *Unpacker) Apply(ctx context.Context, i int) error {
	ctx, cl, err := u.runtime.conn.use(ctx)
	if err != nil {
		return err
	}
	return u.runtime.conn.fail(u.stack(cl, nil).Apply(ctx, i, false))
}

func (u *Unpacker) stack(cl *client.Client, slots unpack.Slots) *unpack.Stack {
	return &unpack.Stack{Layers: u.layers, Snapshotter: cl.SnapshotService(u.snapshotter), Differ: cl.DiffService(),
		Hold: func(ctx context.Context, snapshot string) error {
			return keep(ctx, cl.LeasesService(), leases.Resource{ID: snapshot, Type: "snapshots/" + u.snapshotter})
		},
		Slots: slots, Log: u.runtime.conn.log}
}

// LayerLabels are the labels of a layer's blob: what it unpacks to, as CRI's unpacker
// notes; containerd asks that before it decompresses the layer to find out. Nil where
// dgst is none of the layers.
func (u *Unpacker) LayerLabels(dgst digest.Digest) map[string]string {
	for _, l := range u.layers {
		if l.Blob.Digest == dgst {
			return map[string]string{labels.LabelUncompressed: l.Diff.Digest.String()}
		}
	}
	return nil
}

// Label puts its labels on the blob of layer i, which is here without them.
func (u *Unpacker) Label(ctx context.Context, i int) error {
	ctx, cl, err := u.runtime.conn.use(ctx)
	if err != nil {
		return err
	}
	cs, dgst, diff := cl.ContentStore(), u.layers[i].Blob.Digest, u.layers[i].Diff.Digest.String()
	if has, err := cs.Info(ctx, dgst); err == nil && has.Labels[labels.LabelUncompressed] == diff {
		return nil // asking costs less than a write to containerd's metadata
	}
	info := content.Info{Digest: dgst, Labels: map[string]string{labels.LabelUncompressed: diff}}
	if _, err := cs.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
		return fmt.Errorf("label layer %s: %w", dgst, u.runtime.conn.fail(err))
	}
	return nil
}

// Stacked reports whether all layers are unpacked, so that there is nothing to
// apply.
func (u *Unpacker) Stacked(ctx context.Context) (bool, error) {
	ctx, cl, err := u.runtime.conn.use(ctx)
	if err != nil || len(u.layers) == 0 {
		return false, err
	}
	_, err = cl.SnapshotService(u.snapshotter).Stat(ctx, u.top().String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, u.runtime.conn.fail(err)
}

// top is the chain id of all layers, which names the topmost snapshot.
func (u *Unpacker) top() digest.Digest {
	return (&unpack.Stack{Layers: u.layers}).Chain(len(u.layers))
}

// unpackTries is how often Finish tries again.
const unpackTries = 2

// Finish checks that every layer is unpacked and labels the config as containerd's
// own unpacking does, so that the snapshots live as long as the image.
func (u *Unpacker) Finish(ctx context.Context) error {
	nctx, cl, err := u.runtime.conn.use(ctx)
	if err != nil {
		return err
	}
	// The label first: a snapshot that is there after it stays there.
	if err := u.labelConfig(nctx, cl.ContentStore()); err != nil {
		return err
	}
	if stacked, err := u.Stacked(ctx); err != nil || stacked {
		return err
	}
	img := client.NewImageWithPlatform(cl, images.Image{Name: "seeder", Target: u.target}, u.runtime.conn.platform)
	// A snapshot that was found may be collected before the one above it is made:
	// it was nobody's until then. The second try makes it anew, under the lease.
	for try := 0; ; try++ {
		err = img.Unpack(nctx, u.snapshotter, client.WithUnpackApplyOpts(unpack.Synced...))
		if try == unpackTries || !errdefs.IsNotFound(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", u.target.Digest, u.runtime.conn.fail(err))
	}
	return nil
}

func (u *Unpacker) labelConfig(ctx context.Context, cs store) error {
	if len(u.layers) == 0 {
		return nil
	}
	label := labelSnapshot + u.snapshotter
	info := content.Info{Digest: u.config, Labels: map[string]string{label: u.top().String()}}
	if _, err := cs.Update(ctx, info, "labels."+label); err != nil {
		return fmt.Errorf("label config %s: %w", u.config, u.runtime.conn.fail(err))
	}
	return nil
}

// unpacked is the name of the topmost snapshot of target, "" where it is not there;
// "-" for an image without layers.
func (rt *Runtime) unpacked(ctx context.Context, cs store, target ocispec.Descriptor) (top digest.Digest, _ error) {
	sn, err := rt.SnapshotterName(ctx)
	if err != nil {
		return "", err
	}
	config, layers, err := rt.rootLayers(ctx, cs, target)
	if err != nil {
		return "", err
	}
	if len(layers) == 0 {
		return "-", nil
	}
	u := &Unpacker{runtime: rt, target: target, snapshotter: sn, config: config, layers: layers}
	stacked, err := u.Stacked(ctx)
	if err != nil {
		return "", fmt.Errorf("look for the snapshot of %s: %w", target.Digest, rt.conn.fail(err))
	}
	if !stacked {
		return "", nil
	}
	return u.top(), nil
}

// Unpack unpacks an image whose blobs are all here, unless it is for other platforms. The
// blobs here, which the caller has just found or written, are not looked for again.
func (rt *Runtime) Unpack(ctx context.Context, target ocispec.Descriptor, here ...digest.Digest) error {
	nctx, cl, err := rt.conn.use(ctx)
	if err != nil {
		return err
	}
	cs := rt.content.once(cl, here...)
	if foreign, err := rt.content.isForeign(nctx, cs, target); err != nil || foreign {
		return err
	}
	u, err := rt.Unpacker(ctx, target)
	if err != nil || u == nil {
		return err
	}
	for _, l := range u.layers {
		if here, err := cs.has(nctx, l.Blob.Digest); err != nil {
			return fmt.Errorf("look for blob %s: %w", l.Blob.Digest, rt.conn.fail(err))
		} else if !here {
			return &MissingError{Target: target.Digest, Missing: l.Blob, What: "layer"}
		}
	}
	if stacked, err := u.Stacked(ctx); err != nil {
		return err
	} else if !stacked && len(u.layers) > 0 {
		if err := u.All(ctx, unpack.Present(), u.Label); err != nil {
			return err
		}
	}
	return u.Finish(ctx)
}
