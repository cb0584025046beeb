package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/internal/figure"
	"seeder/store/artifact"
	"seeder/store/delta"
)

// BaseError says that a delta archive cannot be taken: parts of the earlier build are not
// in this host's containerd.
type BaseError struct {
	Image, Since Called
	Missing      []Piece // not empty
}

// maxListed bounds the blobs that an error names.
const maxListed = 10

// Error implements error.
func (e *BaseError) Error() string {
	since := e.Since.Digest.String()
	if e.Since.Reference != "" {
		since = e.Since.Reference + "@" + since
	}
	var missing []string
	for _, p := range e.Missing[:min(len(e.Missing), maxListed)] {
		missing = append(missing, fmt.Sprintf("%s (%s)", p.Digest, figure.Size(p.Size)))
	}
	if more := len(e.Missing) - len(missing); more > 0 {
		missing = append(missing, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("the archive has only what changed since %s, and this host's containerd lacks %d blobs of that build: %s; "+
		"announce that build here first, or export %s without --since", since, len(e.Missing), strings.Join(missing, ", "), e.Image.Reference)
}

// readDelta reads a delta archive. What it names and has not got is a *BaseError before
// anything is written.
func readDelta(ctx context.Context, cs content.Store, blobs Blobs, room func() error, r io.Reader) ([]archived, error) {
	tr := tar.NewReader(r)
	if _, err := tr.Next(); err != nil { // its name was looked at
		return nil, err
	}
	c, err := decodeContents(tr)
	if err != nil {
		return nil, err
	}
	prefix := refPrefix + rand.Text() + "-"
	d := &deltaReader{
		contents: c, cs: cs, blobs: blobs, room: room, prefix: prefix,
		into: &ingester{Store: cs, blobs: blobs, prefix: prefix, digests: map[string]digest.Digest{}},
		want: map[string]func(io.Reader) error{},
	}
	if err := d.claim(ctx); err != nil {
		return nil, err
	}
	if err := d.entries(ctx, tr); err != nil {
		d.into.abort(context.WithoutCancel(ctx))
		return nil, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows the end of a tar file
		return nil, err
	}
	return d.image(ctx)
}

// deltaReader takes the entries of one delta archive. One goroutine uses it.
type deltaReader struct {
	contents Contents
	cs       content.Store
	blobs    Blobs
	room     func() error
	prefix   string
	into     *ingester
	want     map[string]func(io.Reader) error // by the name of an entry that has not come yet
}

// claim puts what the archive needs under the lease of ctx.
func (d *deltaReader) claim(ctx context.Context) error {
	var missing []Piece
	for _, p := range d.contents.Needs {
		here, err := d.has(ctx, p)
		if err != nil {
			return err
		}
		if !here {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return &BaseError{d.contents.Image, d.contents.Since, missing}
	}
	return nil
}

// has reports whether a blob is here, and leases it: to begin to write a blob that is there
// already does that.
func (d *deltaReader) has(ctx context.Context, p Piece) (bool, error) {
	if _, err := d.cs.Info(ctx, p.Digest); err != nil {
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return false, err
	}
	name := d.prefix + "need-" + p.Digest.Encoded()
	w, err := d.cs.Writer(ctx, content.WithRef(name), content.WithDescriptor(ocispec.Descriptor{Digest: p.Digest, Size: p.Size}))
	if err == nil { // it has just gone
		err := w.Close()
		_ = d.cs.Abort(context.WithoutCancel(ctx), name) // garbage collection gets what is left
		return false, err
	}
	if !errdefs.IsAlreadyExists(err) {
		return false, err
	}
	ra, err := d.blobs.ReaderAt(ctx, p.Digest)
	if err != nil {
		return false, nil // containerd does not know yet that the file is gone
	}
	defer ra.Close()
	var last [1]byte
	if ra.Size() != p.Size {
		return false, nil
	}
	_, err = ra.ReadAt(last[:min(p.Size, 1)], max(p.Size-1, 0))
	return err == nil || errors.Is(err, io.EOF), nil
}

// entries takes what the contents say, in any order, each once.
func (d *deltaReader) entries(ctx context.Context, tr *tar.Reader) error {
	for _, p := range d.contents.Blobs {
		d.want[BlobName(p.Digest)] = func(r io.Reader) error { return d.whole(ctx, p, r) }
	}
	for _, delta := range d.contents.Deltas {
		d.want[BlobName(delta.Digest)] = func(r io.Reader) error { return d.rebuild(ctx, delta, r) }
	}
	d.want[LayoutName] = func(io.Reader) error { return nil } // it is for other tools
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		take := d.want[h.Name]
		switch {
		case take == nil:
			return refusef("entry %q is not in its %s, or comes twice", h.Name, ContentsName)
		case h.Typeflag != tar.TypeReg:
			return refusef("entry %q is of the type %q: want a file", h.Name, h.Typeflag)
		case h.Name == LayoutName && h.Size > maxArchiveDocBytes:
			return refusef("%s has %d bytes, at most %d", h.Name, h.Size, maxArchiveDocBytes)
		}
		delete(d.want, h.Name)
		if err := take(tr); err != nil {
			return err
		}
	}
	delete(d.want, LayoutName)
	for name := range d.want {
		return refusef("it is incomplete: %s is not in it, and %d other entries; export it again", name, len(d.want)-1)
	}
	return nil
}

// whole writes a blob that the archive has as it is.
func (d *deltaReader) whole(ctx context.Context, p Piece, r io.Reader) error {
	return d.write(ctx, p, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// rebuild writes the layer that a delta makes.
func (d *deltaReader) rebuild(ctx context.Context, o Delta, r io.Reader) error {
	return d.write(ctx, o.Target, func(w io.Writer) error {
		base, err := d.blobs.ReaderAt(ctx, o.Base)
		if err != nil {
			return err
		}
		defer base.Close()
		src := &sourceReader{r: r}
		_, err = delta.Decode(ctx, w, src, delta.Blob{ReaderAt: base, Digest: o.Base, Bytes: base.Size()})
		if src.err != nil { // not the delta's fault
			return src.err
		}
		if errors.Is(err, delta.ErrMismatch) || errors.Is(err, delta.ErrInvalid) {
			if intact, verr := d.blobs.Verify(ctx, o.Base); verr == nil && !intact {
				return fmt.Errorf("layer %s cannot be rebuilt: its base %s is damaged in this host's containerd; announce the earlier build from an archive that has it whole, which replaces it", o.Target.Digest, o.Base)
			}
			return refusef("the delta of layer %s is damaged: %v", o.Target.Digest, err)
		}
		return err
	})
}

// writeBuffer is how much of a layer that is rebuilt is written at once: containerd takes a
// message for each.
const writeBuffer = 1 << 20

// write writes a blob that make makes, unless it is here. It is committed only with the
// digest and the size of p.
func (d *deltaReader) write(ctx context.Context, p Piece, make func(io.Writer) error) (err error) {
	w, err := d.into.Writer(ctx, content.WithRef(BlobName(p.Digest)), content.WithDescriptor(ocispec.Descriptor{Digest: p.Digest, Size: p.Size}))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	bounded := &boundedWriter{w: w, piece: p, room: d.room}
	buffered := bufio.NewWriterSize(bounded, writeBuffer)
	if err := make(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if got := w.Digest(); got != p.Digest || bounded.n != p.Size {
		return refusef("what it has as %s has the digest %s and %d bytes, want %d", p.Digest, got, bounded.n, p.Size)
	}
	if err := w.Commit(ctx, p.Size, p.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return nil
}

// boundedWriter refuses more bytes than a blob has, and asks for room as it writes: a delta
// is many times shorter than what it makes.
type boundedWriter struct {
	w        io.Writer
	piece    Piece
	room     func() error
	n, asked int64
}

// Write implements io.Writer.
func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.n+int64(len(p)) > b.piece.Size {
		return 0, refusef("%s makes more than %d bytes", b.piece.Digest, b.piece.Size)
	}
	if b.n >= b.asked {
		if err := b.room(); err != nil {
			return 0, err
		}
		b.asked = b.n + roomEvery
	}
	n, err := b.w.Write(p)
	b.n += int64(n)
	return n, err
}

// image is the image of the archive, all of whose blobs are here.
func (d *deltaReader) image(ctx context.Context) ([]archived, error) {
	cs, err := d.blobs.Documents(ctx)
	if err != nil {
		return nil, err
	}
	a := archived{ref: d.contents.Image.Reference, target: d.contents.target()}
	if a.kind, err = artifact.Classify(ctx, cs, a.target); err != nil {
		return nil, fmt.Errorf("import the archive: %w", d.blobs.Explain(err))
	}
	return []archived{a}, nil
}
