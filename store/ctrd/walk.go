package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// Blob is one blob of an image.
type Blob struct {
	ocispec.Descriptor
	For []string // platforms that need it, e.g. linux/amd64; empty: all
}

// MissingError says that an image is incomplete.
type MissingError struct {
	Target  digest.Digest
	Missing ocispec.Descriptor
	What    string // manifest, config, layer
	Damaged bool   // containerd has it, with bytes that do not match its digest
}

func (e *MissingError) Error() string {
	if e.Damaged {
		return fmt.Sprintf("image %s is incomplete: %s %s (%d bytes) is damaged in containerd's content store; it is replaced by that of another node, or where no other has it by `seeder announce --from` of an archive that has it", e.Target, e.What, e.Missing.Digest, e.Missing.Size)
	}
	s := fmt.Sprintf("image %s is incomplete: %s %s (%d bytes) is not in containerd's content store", e.Target, e.What, e.Missing.Digest, e.Missing.Size)
	if e.What == "layer" {
		s += "; if containerd's CRI plugin has discard_unpacked_layers = true it discards layers after unpacking: set it to false and import the image again"
	}
	return s
}

// Unwrap makes errors.Is find fs.ErrNotExist.
func (e *MissingError) Unwrap() error { return fs.ErrNotExist }

// InArchive says of the archive that was imported what err says of containerd, if it is a
// *MissingError.
func InArchive(err error) error {
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Damaged { // the archive has it, containerd's copy has rotted
		return fmt.Errorf("archive: %w", err)
	}
	if images.IsNonDistributable(missing.Missing.MediaType) {
		return absentf("the archive leaves out the foreign layer %s (%d bytes) of image %s, as its builder was configured to do; save the image with it",
			missing.Missing.Digest, missing.Missing.Size, missing.Target)
	}
	return absentf("the archive is incomplete: %s %s (%d bytes) of image %s is not in it",
		missing.What, missing.Missing.Digest, missing.Missing.Size, missing.Target)
}

// Walk lists the blobs of target that are here, in the order in which an import
// wants them: index, manifests, configs, layers from the bottom up. Platforms
// whose manifest is absent, and attestations, are passed over; for this host's
// own platform nothing may be missing (*MissingError).
func (c *Content) Walk(ctx context.Context, target ocispec.Descriptor) ([]Blob, error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	return c.walk(ctx, c.once(cl), target)
}

// isForeign reports whether an image, whose blobs for this host are here if there are
// any, has nothing that this host's containerd would run. It chooses by platform in an
// index alone: a target that is a manifest it takes, whatever the config says.
func (c *Content) isForeign(ctx context.Context, cs store, target ocispec.Descriptor) (bool, error) {
	if c.conn.HoldsAll() || images.IsManifestType(target.MediaType) {
		return false, nil
	}
	config, err := images.Config(ctx, cs, target, c.conn.platform)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("find the config of %s: %w", target.Digest, c.conn.fail(err))
	}
	p, err := images.ConfigPlatform(ctx, cs, config)
	if err != nil {
		return false, fmt.Errorf("read config %s: %w", config.Digest, c.conn.fail(err))
	}
	return !c.conn.Runs(platforms.Format(p)), nil
}

func (c *Content) walk(ctx context.Context, cs store, target ocispec.Descriptor) (_ []Blob, err error) {
	w := &walk{content: c, cs: cs, target: target}
	switch {
	case images.IsIndexType(target.MediaType):
		err = w.index(ctx, target, 0)
	case images.IsManifestType(target.MediaType):
		err = w.manifest(ctx, target, nil)
	default:
		err = fmt.Errorf("image %s: unknown media type %q", target.Digest, target.MediaType)
	}
	if err != nil {
		return nil, err
	}
	if w.found == 0 {
		if w.incomplete != nil {
			return nil, w.incomplete
		}
		return nil, absentf("image %s has no complete platform here", target.Digest)
	}
	return slices.Concat(w.indexes, w.manifests, w.configs, w.layers), nil
}

// walk gathers the blobs of one image.
type walk struct {
	content    *Content
	cs         store
	target     ocispec.Descriptor
	found      int // platforms that are complete
	incomplete error

	indexes, manifests, configs, layers []Blob
}

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if ok, err := w.hasDocument(ctx, desc); err != nil || !ok {
		return w.orMissing(ctx, err, desc, "index")
	}
	if err := w.bounded(ctx, desc, "index"); err != nil {
		return err
	}
	children, err := images.Children(ctx, w.cs, desc)
	if err != nil {
		return fmt.Errorf("read index %s: %w", desc.Digest, w.content.conn.fail(err))
	}
	w.indexes = add(w.indexes, desc, "")
	for _, child := range children {
		switch ok, err := w.hasDocument(ctx, child); {
		case err != nil:
			return err
		case !ok:
			if w.ours(child.Platform) && !artifact.IsAttestation(child) && w.incomplete == nil {
				w.incomplete = w.missing(ctx, child, "manifest")
			}
		case artifact.IsAttestation(child):
		case images.IsIndexType(child.MediaType) && depth < artifact.MaxIndexDepth:
			if err := w.index(ctx, child, depth+1); err != nil {
				return err
			}
		case images.IsManifestType(child.MediaType):
			if err := w.manifest(ctx, child, child.Platform); err != nil {
				return err
			}
		}
	}
	return nil
}

// ours reports whether p is this host's platform, or might be.
func (w *walk) ours(p *ocispec.Platform) bool { return p != nil && w.content.conn.platform.Match(*p) }

// manifest adds a manifest with everything below it, or nothing where something
// is missing; for this host's platform that is an error.
func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor, p *ocispec.Platform) error {
	if ok, err := w.hasDocument(ctx, desc); err != nil || !ok {
		return w.orMissing(ctx, err, desc, "manifest")
	}
	if err := w.bounded(ctx, desc, "manifest"); err != nil {
		return err
	}
	children, err := images.Children(ctx, w.cs, desc)
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", desc.Digest, w.content.conn.fail(err))
	}
	if len(children) == 0 {
		return fmt.Errorf("manifest %s has no config", desc.Digest)
	}
	for i, child := range children {
		has, what := w.has, "layer"
		if i == 0 {
			has, what = w.hasDocument, "config"
		}
		ok, err := has(ctx, child)
		if err != nil {
			return err
		}
		if ok || images.IsNonDistributable(child.MediaType) {
			continue
		}
		missing := w.missing(ctx, child, what)
		if p == nil || w.ours(p) {
			return missing
		}
		w.incomplete = missing
		return nil // a platform that is not complete here is not ours to give
	}
	if err := w.bounded(ctx, children[0], "config"); err != nil {
		return err
	}
	if p == nil || p.OS == "" {
		got, err := images.ConfigPlatform(ctx, w.cs, children[0])
		if err != nil {
			return fmt.Errorf("read config %s: %w", children[0].Digest, w.content.conn.fail(err))
		}
		p = &got
	}
	w.add(ctx, desc, children, w.platform(desc, *p))
	return nil
}

// platform is for which hosts a manifest is, "" for all. In an index it is what is said
// of it. A manifest that is the target itself is for all hosts where its config names
// another platform than this host's, or none: such labels are often wrong (WebAssembly
// has its own), this host's containerd runs it, and others would as well. With the
// right label it is not given to hosts that cannot run it.
func (w *walk) platform(desc ocispec.Descriptor, p ocispec.Platform) string {
	name := platforms.Format(platforms.Normalize(p))
	if desc.Digest == w.target.Digest && !w.content.conn.HoldsAll() && !w.content.conn.Runs(name) {
		return ""
	}
	return name
}

func (w *walk) add(ctx context.Context, manifest ocispec.Descriptor, children []ocispec.Descriptor, platform string) {
	w.found++
	w.manifests = add(w.manifests, manifest, platform)
	w.configs = add(w.configs, children[0], platform)
	for _, layer := range children[1:] {
		if ok, _ := w.has(ctx, layer); ok { // a foreign layer may be absent
			w.layers = add(w.layers, layer, platform)
		}
	}
}

// add appends a blob once, with every platform that needs it.
func add(blobs []Blob, d ocispec.Descriptor, platform string) []Blob {
	for i := range blobs {
		if blobs[i].Digest == d.Digest {
			if platform != "" && !slices.Contains(blobs[i].For, platform) {
				blobs[i].For = append(blobs[i].For, platform)
			}
			return blobs
		}
	}
	b := Blob{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	if platform != "" {
		b.For = []string{platform}
	}
	return append(blobs, b)
}

// hasDocument asks for a manifest, index or config whose bytes match its digest.
func (w *walk) hasDocument(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	if ok, err := w.has(ctx, d); err != nil || !ok {
		return false, err
	}
	ra, err := w.cs.ReaderAt(ctx, d)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read blob %s: %w", d.Digest, w.content.conn.fail(err))
	}
	return true, ra.Close()
}

// has asks for a blob of the descriptor's size.
func (w *walk) has(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	info, err := w.cs.Info(ctx, d.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for blob %s: %w", d.Digest, w.content.conn.fail(err))
	}
	if w.content.files.fileless(ctx, d.Digest) || w.content.Damaged(ctx, d.Digest) { // containerd does not know yet
		return false, nil
	}
	return d.Size == 0 || info.Size == d.Size, nil
}

// bounded refuses a document that is too large to be one.
func (w *walk) bounded(ctx context.Context, d ocispec.Descriptor, what string) error {
	info, err := w.cs.Info(ctx, d.Digest)
	if err == nil && info.Size > artifact.MaxDocBytes {
		return fmt.Errorf("image %s: its %s %s has %d bytes, at most %d", w.target.Digest, what, d.Digest, info.Size, artifact.MaxDocBytes)
	}
	return nil
}

func (w *walk) orMissing(ctx context.Context, err error, desc ocispec.Descriptor, what string) error {
	if err != nil {
		return err
	}
	return w.missing(ctx, desc, what)
}

func (w *walk) missing(ctx context.Context, desc ocispec.Descriptor, what string) error {
	return &MissingError{Target: w.target.Digest, Missing: desc, What: what, Damaged: w.content.Damaged(ctx, desc.Digest)}
}
