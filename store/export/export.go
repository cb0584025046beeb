// Package export writes images of this host as archives that a cluster without a connection
// to this one takes.
//
// It owns what an archive has and in which order, and which layers travel as deltas. It
// never knows containerd: blobs come in through Config. The format of a delta archive is
// that of package archive, which reads it.
//
// Invariant: the same image and the same earlier build give the same bytes; no byte of a
// blob is the last of its entry before the blob was verified by its digest, so an archive
// that was written without an error has only verified blobs.
//
// Memory: that of store/delta, once for all exports of the process. Disk: the deltas of one
// archive, each at most half of its layer, in files without a name, so nothing is left of
// them after a crash.
package export

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/archive"
	"seeder/store/artifact"
	"seeder/store/chunk"
	"seeder/store/delta"
)

// Blob is a blob open for reading.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Whole reads the blob from its beginning. Of a damaged one the last bytes never come.
	Whole() io.Reader
}

// Config is what an export is made of.
type Config struct {
	// Find is the full name of a reference, and its target: at, or the one that it has where
	// at is empty. Both are kept until the archive is closed.
	Find func(ctx context.Context, ref string, at digest.Digest) (string, ocispec.Descriptor, error)
	// Walk lists the blobs of an image that are here: indexes, manifests, configs, layers.
	Walk func(ctx context.Context, target ocispec.Descriptor) ([]artifact.Blob, error)
	Open func(ctx context.Context, d digest.Digest) (Blob, error)
	// Choose is the layer among bases that is most like a layer, and the kind of delta
	// between them; "" where none is like it.
	Choose func(ctx context.Context, layer digest.Digest, bases []digest.Digest) (digest.Digest, delta.Kind, error)
	// Room is an error that says why a delta of at most so many bytes may not be made.
	Room func(ctx context.Context, bytes int64) error
	// TempFile makes a file for a delta.
	TempFile func() (*os.File, error)
}

// Order says what is exported.
type Order struct {
	Ref      string
	At       digest.Digest // the target; empty: the one that Ref has
	Since    string        // a reference; empty: the archive is whole
	SinceAt  digest.Digest // the target of the earlier build; empty: the one that Since has
	Platform string        // e.g. linux/arm64; empty: all that are here
}

// image is an image of this host.
type image struct {
	ref    string // its full name
	target ocispec.Descriptor
}

// Summary says what an archive has. Sizes are in bytes of blobs as stored.
type Summary struct {
	Reference string
	Digest    digest.Digest
	Blobs     int   // that are in the archive as they are
	Bytes     int64 // of these and of the deltas
	// Of an export since an earlier build:
	Since        digest.Digest
	LeftOut      int // blobs that the earlier build has
	LeftOutBytes int64
	Deltas       int
	DeltaBytes   int64
	RebuiltBytes int64 // of the layers that the deltas make
}

// Archive is an archive that can be written. One goroutine uses it.
type Archive struct {
	Summary Summary
	cfg     Config
	docs    []document
	blobs   []artifact.Blob
	deltas  []made
}

// document is an entry whose text is at hand.
type document struct {
	name string
	text []byte
}

// made is a delta that was made. Its file has no name any more.
type made struct {
	archive.Delta
	file *os.File
}

// ErrSame says that the earlier build is the one that is exported.
var ErrSame = errors.New("--since names the build that is to be exported: want an earlier one, --since REF@sha256:…")

// Prepare looks for the blobs of an image, and makes the deltas of its layers where an
// earlier build is named. The archive is the caller's to close. Errors wrap fs.ErrNotExist
// where an image is not here, or not all of it.
func Prepare(ctx context.Context, cfg Config, o Order) (_ *Archive, err error) {
	var img image
	if img.ref, img.target, err = cfg.Find(ctx, o.Ref, o.At); err != nil {
		return nil, err
	}
	a := &Archive{cfg: cfg, Summary: Summary{Reference: img.ref, Digest: img.target.Digest}}
	if err := a.prepare(ctx, img, o); err != nil {
		return nil, errors.Join(fmt.Errorf("export %s: %w", img.ref, err), a.Close())
	}
	a.Summary.Blobs, a.Summary.Bytes = len(a.blobs), a.Summary.DeltaBytes
	for _, b := range a.blobs {
		a.Summary.Bytes += b.Size
	}
	return a, nil
}

// making is held to make deltas: each export takes memory for it, which is the process's.
var making = make(chan struct{}, 1)

func (a *Archive) prepare(ctx context.Context, img image, o Order) (err error) {
	if a.blobs, err = a.cfg.Walk(ctx, img.target); err != nil {
		return err
	}
	if o.Platform != "" {
		if a.blobs, err = of(a.blobs, o.Platform); err != nil {
			return err
		}
	}
	if o.Since == "" {
		return a.layout(img)
	}
	select {
	case making <- struct{}{}:
		defer func() { <-making }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var earlier image
	if earlier.ref, earlier.target, err = a.cfg.Find(ctx, o.Since, o.SinceAt); err != nil {
		return fmt.Errorf("the earlier build: %w", err)
	}
	if earlier.target.Digest == img.target.Digest {
		return ErrSame
	}
	return a.since(ctx, img, earlier)
}

// of are the blobs of a platform.
func of(blobs []artifact.Blob, platform string) (out []artifact.Blob, err error) {
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("invalid platform %q: %w", platform, err)
	}
	host, found := artifact.Host{Platform: platforms.OnlyStrict(p)}, false
	var have []string
	for _, b := range blobs {
		if len(b.For) > 0 && !slices.ContainsFunc(b.For, host.Runs) {
			have = append(have, b.For...)
			continue
		}
		out = append(out, b)
		found = found || artifact.IsManifest(b.MediaType)
	}
	if !found {
		slices.Sort(have)
		return nil, artifact.Absentf("this host has nothing of it for %s, only for %s", platform, strings.Join(slices.Compact(have), ", "))
	}
	return out, nil
}

// layout adds the documents of an OCI image layout.
func (a *Archive) layout(img image) error {
	target := ocispec.Descriptor{MediaType: img.target.MediaType, Digest: img.target.Digest, Size: img.target.Size,
		Annotations: map[string]string{archive.ImageName: img.ref}}
	if named, err := reference.ParseDockerRef(img.ref); err == nil {
		if tagged, ok := named.(reference.Tagged); ok {
			target.Annotations[ocispec.AnnotationRefName] = tagged.Tag()
		}
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{target}})
	if err != nil {
		return err
	}
	a.docs = []document{{archive.LayoutName, layout}, {ocispec.ImageIndexFile, index}}
	return nil
}

// since leaves out what an earlier build has, and makes deltas of what it has not.
func (a *Archive) since(ctx context.Context, img, earlier image) error {
	a.Summary.Since = earlier.target.Digest
	before, err := a.cfg.Walk(ctx, earlier.target)
	if err != nil {
		return fmt.Errorf("the earlier build: %w", err)
	}
	has := map[digest.Digest]artifact.Blob{}
	for _, b := range before {
		has[b.Digest] = b
	}
	needs := map[digest.Digest]archive.Piece{}
	var whole []artifact.Blob
	for _, b := range a.blobs {
		if _, left := has[b.Digest]; left {
			needs[b.Digest] = archive.Piece{Digest: b.Digest, Size: b.Size}
			a.Summary.LeftOut++
			a.Summary.LeftOutBytes += b.Size
			continue
		}
		d, err := a.delta(ctx, b, before)
		if err != nil {
			return err
		}
		if d == nil {
			whole = append(whole, b)
			continue
		}
		needs[d.Base] = archive.Piece{Digest: d.Base, Size: has[d.Base].Size}
		a.deltas = append(a.deltas, *d)
		a.Summary.Deltas++
		a.Summary.DeltaBytes += d.Size
		a.Summary.RebuiltBytes += b.Size
	}
	a.blobs = whole
	c := archive.Contents{Image: called(img), Since: called(earlier)}
	for _, b := range a.blobs {
		c.Blobs = append(c.Blobs, archive.Piece{Digest: b.Digest, Size: b.Size})
	}
	for _, d := range a.deltas {
		c.Deltas = append(c.Deltas, d.Delta)
	}
	for _, p := range needs {
		c.Needs = append(c.Needs, p)
	}
	slices.SortFunc(c.Needs, func(a, b archive.Piece) int { return cmp.Compare(a.Digest, b.Digest) })
	text, err := c.Encode()
	if err != nil {
		return err
	}
	a.docs = []document{{archive.ContentsName, text}, {archive.LayoutName, []byte(archive.DeltaLayout)}}
	return nil
}

func called(i image) archive.Called {
	return archive.Called{Reference: i.ref, MediaType: i.target.MediaType, Digest: i.target.Digest, Size: i.target.Size}
}

// delta is that of a layer, nil where it travels whole.
func (a *Archive) delta(ctx context.Context, l artifact.Blob, before []artifact.Blob) (*made, error) {
	if !artifact.IsLayer(l.MediaType) || l.Size < chunk.MinDeltaLayer {
		return nil, nil
	}
	apart := func(b artifact.Blob) int64 { return max(b.Size-l.Size, l.Size-b.Size) }
	candidates := slices.DeleteFunc(slices.Clone(before), func(b artifact.Blob) bool { return !artifact.IsLayer(b.MediaType) || b.Size < chunk.MinDeltaLayer })
	slices.SortStableFunc(candidates, func(a, b artifact.Blob) int { return cmp.Compare(apart(a), apart(b)) })
	var bases []digest.Digest
	for _, b := range candidates {
		bases = append(bases, b.Digest)
	}
	base, kind, err := a.cfg.Choose(ctx, l.Digest, bases)
	if err != nil || base == "" {
		return nil, err
	}
	d, err := a.encode(ctx, l, base, kind)
	if errors.Is(err, delta.ErrNotWorth) || errors.Is(err, delta.ErrRefused) {
		return nil, nil
	}
	return d, err
}

func (a *Archive) encode(ctx context.Context, l artifact.Blob, base digest.Digest, kind delta.Kind) (_ *made, err error) {
	most := int64(chunk.MostOfLayer * float64(l.Size))
	if err := a.cfg.Room(ctx, most); err != nil {
		return nil, err
	}
	old, err := a.cfg.Open(ctx, base)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	if _, err := io.Copy(io.Discard, old.Whole()); err != nil { // another cluster's copy is not damaged like this one
		return nil, err
	}
	layer, err := a.cfg.Open(ctx, l.Digest)
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	f, err := a.cfg.TempFile()
	if err != nil {
		return nil, fmt.Errorf("make the file of a delta: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("take the name of the file of a delta: %w", err)
	}
	sum := digest.SHA256.Digester()
	_, bytes, err := delta.Encode(ctx, io.MultiWriter(f, sum.Hash()), kind, delta.Blob{ReaderAt: old, Digest: base, Bytes: old.Size()},
		delta.Blob{ReaderAt: layer, Digest: l.Digest, Bytes: layer.Size()}, most)
	if err != nil {
		return nil, err
	}
	return &made{archive.Delta{Piece: archive.Piece{Digest: sum.Digest(), Size: bytes}, Kind: kind.String(), Base: base,
		Target: archive.Piece{Digest: l.Digest, Size: l.Size}}, f}, nil
}

// Write writes the archive as a tar file. It may be called again.
func (a *Archive) Write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	add := func(name string, size int64, r io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := io.Copy(tw, &cancelled{ctx, r}); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	for _, d := range a.docs {
		if err := add(d.name, int64(len(d.text)), strings.NewReader(string(d.text))); err != nil {
			return err
		}
	}
	for _, b := range a.blobs {
		if err := a.blob(ctx, b, add); err != nil {
			return err
		}
	}
	for _, d := range a.deltas {
		if err := add(archive.BlobName(d.Digest), d.Size, io.NewSectionReader(d.file, 0, d.Size)); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil { // of a blob that is shorter than it was, too
		return fmt.Errorf("write the end of the archive: %w", err)
	}
	return nil
}

func (a *Archive) blob(ctx context.Context, b artifact.Blob, add func(string, int64, io.Reader) error) error {
	h, err := a.cfg.Open(ctx, b.Digest)
	if err != nil {
		return err
	}
	if h.Size() != b.Size {
		return errors.Join(fmt.Errorf("blob %s has %d bytes, its manifest says %d", b.Digest, h.Size(), b.Size), h.Close())
	}
	return errors.Join(add(archive.BlobName(b.Digest), b.Size, h.Whole()), h.Close())
}

// cancelled reads until a context ends.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Close removes the deltas.
func (a *Archive) Close() error {
	var errs []error
	for _, d := range a.deltas {
		errs = append(errs, d.file.Close())
	}
	a.deltas = nil
	return errors.Join(errs...)
}
