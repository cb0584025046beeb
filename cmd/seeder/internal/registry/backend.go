package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p/report"
)

// Catalog is what is announced.
type Catalog interface {
	// Here is what ref is announced as, and how far this host is with it; ok is false
	// where it is not announced.
	Here(ref string) (target ocispec.Descriptor, s report.State, ok bool)
	// References are all that are announced.
	References() []string
}

// Blob is a blob of this host, open for reading.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Whole reads all of it; the last bytes never come where its digest is not right.
	Whole() io.Reader
}

// Images are the blobs of this host. Errors wrap fs.ErrNotExist where there is no such blob.
type Images interface {
	// Held opens a blob that this host has.
	Held(ctx context.Context, d digest.Digest) (Blob, error)
	// Arriving opens a blob of an image that this host is fetching. Who reads it waits for
	// what is not here yet, until ctx ends.
	Arriving(ctx context.Context, d digest.Digest) (Arriving, error)
}

// Arriving is a blob on its way.
type Arriving interface {
	Blob
	// Here reports whether all of it is here.
	Here() bool
}

// maxManifestBytes is the most that registries take (distribution-spec, "Pushing
// Manifests").
const maxManifestBytes = 4 << 20

// patience is how long a pull waits for an image that is on its way. total is below the five
// minutes after which CRI gives up a pull that brings nothing (image_pull_progress_timeout).
type patience struct {
	stalled time.Duration // while nothing arrives
	total   time.Duration
	look    time.Duration // how often it is looked
}

var defaultPatience = patience{stalled: 20 * time.Second, total: 4 * time.Minute, look: 100 * time.Millisecond}

// backend answers the requests that ociserver reads.
type backend struct {
	catalog  Catalog
	images   Images
	patience patience
	streams  chan struct{} // one for each blob that is read while it arrives
	// pushed opens a blob that was pushed and is not an image yet, in whatever repository; nil
	// where nobody may push.
	pushed func(d digest.Digest) (Blob, error)
}

// openPushed is pushed, and finds nothing where nobody may push.
func (b *backend) openPushed(d digest.Digest) (Blob, error) {
	if b.pushed == nil {
		return nil, fs.ErrNotExist
	}
	return b.pushed(d)
}

func (b *backend) funcs() *ociregistry.Funcs {
	return &ociregistry.Funcs{
		GetTag_:          b.getTag,
		ResolveTag_:      b.resolveTag,
		GetManifest_:     b.getManifest,
		ResolveManifest_: b.resolveManifest,
		GetBlob_:         b.getBlob,
		GetBlobRange_:    b.getBlobRange,
		ResolveBlob_:     b.resolveBlob,
		Tags_:            b.tags,
	}
}

// repository is the full name of what the client calls repo.
func repository(ctx context.Context, repo string) (string, error) {
	if ns := namespaceOf(ctx); ns != "" {
		repo = ns + "/" + repo
	}
	ref, err := cli.NormalizeRef(repo + ":x")
	if err != nil {
		return "", ociregistry.ErrNameInvalid
	}
	return strings.TrimSuffix(ref, ":x"), nil
}

// announced are the references of a repository that are announced, an error where none is:
// whatever else this host holds is nobody's business.
func (b *backend) announced(ctx context.Context, repo string) ([]string, error) {
	full, err := repository(ctx, repo)
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, ref := range b.catalog.References() {
		rest, ok := strings.CutPrefix(ref, full)
		if ok && strings.IndexAny(rest, ":@") == 0 {
			refs = append(refs, ref)
		}
	}
	if len(refs) == 0 {
		return nil, ociregistry.ErrNameUnknown
	}
	return refs, nil
}

func (b *backend) getTag(ctx context.Context, repo, tag string) (ociregistry.BlobReader, error) {
	full, err := repository(ctx, repo)
	if err != nil {
		return nil, err
	}
	return b.await(ctx, full+":"+tag)
}

func (b *backend) resolveTag(ctx context.Context, repo, tag string) (ociregistry.Descriptor, error) {
	return describe(b.getTag(ctx, repo, tag))
}

// getManifest gives any manifest of an announced repository that this host has or is
// fetching, and waits for one that is announced.
func (b *backend) getManifest(ctx context.Context, repo string, d digest.Digest) (ociregistry.BlobReader, error) {
	if blob, err := b.openPushed(d); err == nil {
		return readManifest(blob, d)
	}
	refs, err := b.announced(ctx, repo)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		if target, _, ok := b.catalog.Here(ref); ok && target.Digest == d {
			r, err := b.await(ctx, ref)
			if err == nil && r.Descriptor().Digest != d {
				err = errors.Join(ociregistry.ErrManifestUnknown, r.Close())
			}
			return r, err
		}
	}
	blob, err := b.reach(ctx, refs, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ociregistry.ErrManifestUnknown
	}
	if err != nil {
		return nil, err
	}
	return readManifest(blob, d)
}

// reach opens a blob that this host has, or else is fetching for one of refs. The error wraps
// fs.ErrNotExist where neither is so.
func (b *backend) reach(ctx context.Context, refs []string, d digest.Digest) (Blob, error) {
	blob, err := b.images.Held(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		blob, err = b.stream(ctx, refs, d)
	}
	if errors.Is(err, fs.ErrNotExist) { // it may have been imported in between
		blob, err = b.images.Held(ctx, d)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ociregistry.ErrTooManyRequests) {
		return nil, unavailable(err)
	}
	return blob, err
}

func (b *backend) resolveManifest(ctx context.Context, repo string, d digest.Digest) (ociregistry.Descriptor, error) {
	return describe(b.getManifest(ctx, repo, d))
}

// await is the manifest of an announced reference as soon as it is here. The node fetches
// whatever is announced to it: who pulls joins that, and reads the rest as it arrives.
func (b *backend) await(ctx context.Context, ref string) (ociregistry.BlobReader, error) {
	begun := time.Now()
	moved := begun
	for {
		target, state, ok := b.catalog.Here(ref)
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: %s is not announced", ociregistry.ErrManifestUnknown, ref)
		case state == report.Ready:
			return b.manifest(ctx, target.Digest)
		case onItsWay(state):
			moved = time.Now()
			if r, err := b.early(ctx, target.Digest); !errors.Is(err, fs.ErrNotExist) {
				return r, err
			}
		case state != report.Waiting:
			return nil, fmt.Errorf("%w: %s is %s on this host", ociregistry.ErrManifestUnknown, ref, state)
		}
		if now := time.Now(); now.Sub(moved) > b.patience.stalled || now.Sub(begun) > b.patience.total {
			return nil, fmt.Errorf("%w: %s is still %s on this host", ociregistry.ErrManifestUnknown, ref, state)
		}
		select {
		case <-time.After(b.patience.look):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", ref, context.Cause(ctx))
		}
	}
}

// manifest reads and verifies a manifest that this host has.
func (b *backend) manifest(ctx context.Context, d digest.Digest) (ociregistry.BlobReader, error) {
	blob, err := b.images.Held(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ociregistry.ErrManifestUnknown
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return readManifest(blob, d)
}

// readManifest reads and closes a blob.
func readManifest(blob Blob, d digest.Digest) (ociregistry.BlobReader, error) {
	defer blob.Close()
	if blob.Size() > maxManifestBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, a manifest at most %d", ociregistry.ErrManifestUnknown, d, blob.Size(), maxManifestBytes)
	}
	content, err := io.ReadAll(blob.Whole())
	if err != nil {
		return nil, unavailable(err)
	}
	mediaType := mediaTypeOf(content)
	if mediaType == "" { // a config or a layer is asked for as a blob
		return nil, ociregistry.ErrManifestUnknown
	}
	return &part{bytes.NewReader(content), io.NopCloser(nil), ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}}, nil
}

// mediaTypeOf is the media type of a manifest or an index, empty of anything else. OCI's may
// leave it out.
func mediaTypeOf(content []byte) string {
	var m struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
	}
	switch err := json.Unmarshal(content, &m); {
	case err != nil, m.Manifests == nil && m.Layers == nil:
		return ""
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

func (b *backend) openBlob(ctx context.Context, repo string, d digest.Digest) (Blob, error) {
	if blob, err := b.openPushed(d); err == nil {
		return blob, nil
	}
	refs, err := b.announced(ctx, repo)
	if err != nil {
		return nil, err
	}
	blob, err := b.reach(ctx, refs, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ociregistry.ErrBlobUnknown
	}
	return blob, err
}

func (b *backend) getBlob(ctx context.Context, repo string, d digest.Digest) (ociregistry.BlobReader, error) {
	blob, err := b.openBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	return &part{blob.Whole(), blob, blobDescriptor(blob, d)}, nil
}

// getBlobRange gives the bytes from from to before to, to the end where to is negative.
func (b *backend) getBlobRange(ctx context.Context, repo string, d digest.Digest, from, to int64) (ociregistry.BlobReader, error) {
	blob, err := b.openBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	if to < 0 || to > blob.Size() {
		to = blob.Size()
	}
	if from >= to {
		return nil, errors.Join(ociregistry.ErrRangeInvalid, blob.Close())
	}
	return &part{io.NewSectionReader(blob, from, to-from), blob, blobDescriptor(blob, d)}, nil
}

func (b *backend) resolveBlob(ctx context.Context, repo string, d digest.Digest) (ociregistry.Descriptor, error) {
	blob, err := b.openBlob(ctx, repo, d)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	return blobDescriptor(blob, d), blob.Close()
}

const blobMediaType = "application/octet-stream"

func blobDescriptor(blob Blob, d digest.Digest) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: blobMediaType, Digest: d, Size: blob.Size()}
}

func describe(r ociregistry.BlobReader, err error) (ociregistry.Descriptor, error) {
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	return r.Descriptor(), r.Close()
}

// part is what is sent of a blob: ociregistry.BlobReader.
type part struct {
	io.Reader
	io.Closer
	descriptor ocispec.Descriptor
}

// Descriptor is that of the whole blob.
func (p *part) Descriptor() ociregistry.Descriptor { return p.descriptor }
