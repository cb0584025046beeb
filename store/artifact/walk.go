package artifact

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blobs are the blobs of a host, as a walk asks for them.
type Blobs interface {
	// ReaderAt of it refuses what CheckDocument does.
	content.InfoReaderProvider
	// Fileless reports whether a blob is known to have no file, whatever containerd says.
	Fileless(ctx context.Context, dgst digest.Digest) bool
	// Damaged reports whether a blob is known to be damaged.
	Damaged(ctx context.Context, dgst digest.Digest) bool
	// Explain adds to an error of containerd what it means.
	Explain(err error) error
}

// Host is for whom an image is looked at.
type Host struct {
	Platform platforms.MatchComparer
	All      bool // it is meant to hold every platform of an image
}

// Runs reports whether the host runs images of a platform, e.g. linux/amd64.
func (h Host) Runs(platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && h.Platform.Match(p)
}

// Walk lists the blobs of target that are here, in the order in which an import
// wants them: index, manifests, configs, layers from the bottom up. Platforms
// whose manifest is absent, and attestations, are passed over; for this host's
// own platform nothing may be missing (*MissingError).
func Walk(ctx context.Context, blobs Blobs, host Host, target ocispec.Descriptor) (_ []Blob, err error) {
	w := &walk{blobs: blobs, host: host, target: target}
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
		return nil, Absentf("image %s has no complete platform here", target.Digest)
	}
	return slices.Concat(w.indexes, w.manifests, w.configs, w.layers), nil
}

// OtherPlatform begins why a host should not hold an image of other platforms.
const OtherPlatform = "the image is for "

// IsForeign reports whether an image, whose blobs for this host are here if there are
// any, has nothing that this host's containerd would run. It chooses by platform in an
// index alone: a target that is a manifest it takes, whatever the config says.
func IsForeign(ctx context.Context, blobs Blobs, host Host, target ocispec.Descriptor) (bool, error) {
	if host.All || images.IsManifestType(target.MediaType) {
		return false, nil
	}
	config, err := images.Config(ctx, blobs, target, host.Platform)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("find the config of %s: %w", target.Digest, blobs.Explain(err))
	}
	p, err := images.ConfigPlatform(ctx, blobs, config)
	if err != nil {
		return false, fmt.Errorf("read config %s: %w", config.Digest, blobs.Explain(err))
	}
	return !host.Runs(platforms.Format(p)), nil
}

// walk gathers the blobs of one image.
type walk struct {
	blobs      Blobs
	host       Host
	target     ocispec.Descriptor
	found      int // platforms that are complete
	incomplete error

	indexes, manifests, configs, layers []Blob
}

func (w *walk) index(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if ok, err := w.hasDocument(ctx, desc); err != nil || !ok {
		return w.orMissing(ctx, err, desc, "index")
	}
	children, err := images.Children(ctx, w.blobs, desc)
	if err != nil {
		return fmt.Errorf("read index %s: %w", desc.Digest, w.blobs.Explain(err))
	}
	w.indexes = add(w.indexes, desc, "")
	for _, child := range children {
		switch ok, err := w.hasDocument(ctx, child); {
		case err != nil:
			return err
		case !ok:
			if w.ours(child.Platform) && !IsAttestation(child) && w.incomplete == nil {
				w.incomplete = w.missing(ctx, child, "manifest")
			}
		case IsAttestation(child):
		case images.IsIndexType(child.MediaType) && depth < MaxIndexDepth:
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
func (w *walk) ours(p *ocispec.Platform) bool { return p != nil && w.host.Platform.Match(*p) }

// manifest adds a manifest with everything below it, or nothing where something
// is missing; for this host's platform that is an error.
func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor, p *ocispec.Platform) error {
	if ok, err := w.hasDocument(ctx, desc); err != nil || !ok {
		return w.orMissing(ctx, err, desc, "manifest")
	}
	children, err := images.Children(ctx, w.blobs, desc)
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", desc.Digest, w.blobs.Explain(err))
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
	if p == nil || p.OS == "" {
		got, err := images.ConfigPlatform(ctx, w.blobs, children[0])
		if err != nil {
			return fmt.Errorf("read config %s: %w", children[0].Digest, w.blobs.Explain(err))
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
	if desc.Digest == w.target.Digest && !w.host.All && !w.host.Runs(name) {
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
	ra, err := w.blobs.ReaderAt(ctx, d)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read blob %s: %w", d.Digest, w.blobs.Explain(err))
	}
	return true, ra.Close()
}

// has asks for a blob of the descriptor's size.
func (w *walk) has(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	info, err := w.blobs.Info(ctx, d.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for blob %s: %w", d.Digest, w.blobs.Explain(err))
	}
	if w.blobs.Fileless(ctx, d.Digest) || w.blobs.Damaged(ctx, d.Digest) { // containerd does not know yet
		return false, nil
	}
	return d.Size == 0 || info.Size == d.Size, nil
}

func (w *walk) orMissing(ctx context.Context, err error, desc ocispec.Descriptor, what string) error {
	if err != nil {
		return err
	}
	return w.missing(ctx, desc, what)
}

func (w *walk) missing(ctx context.Context, desc ocispec.Descriptor, what string) error {
	return &MissingError{Target: w.target.Digest, Missing: desc, What: what, Damaged: w.blobs.Damaged(ctx, desc.Digest)}
}

// LabelContent begins the labels by which a blob keeps others from garbage collection.
const LabelContent = "containerd.io/gc.ref.content"

// Unlabelled is a blob that garbage collection does not find from its image's
// target by labels: somebody removed them (`ctr content prune references` does),
// and what is here now is gone soon.
func Unlabelled(ctx context.Context, blobs Blobs, target digest.Digest, all []Blob) (digest.Digest, error) {
	kept := map[digest.Digest]bool{target: true}
	for _, b := range all { // parents come before their children
		if !kept[b.Digest] {
			return b.Digest, nil
		}
		info, err := blobs.Info(ctx, b.Digest)
		if err != nil {
			return "", fmt.Errorf("look for blob %s: %w", b.Digest, blobs.Explain(err))
		}
		for label, child := range info.Labels {
			if strings.HasPrefix(label, LabelContent) {
				kept[digest.Digest(child)] = true
			}
		}
	}
	return "", nil
}
