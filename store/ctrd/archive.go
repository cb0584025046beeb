package ctrd

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// ErrNotArchive says that what was to be imported is no image archive.
var ErrNotArchive = errors.New("not a docker-archive or OCI-layout tar file")

// ForArchive begins the names of the leases of ImportArchive.
const ForArchive = "archive-"

// Imported is what an archive brought.
type Imported struct {
	Names   []string // of the images that are named now, sorted
	LeftOut []string // what is said of images without a name, and of artifacts

	c      *Containerd
	before map[string]recordsBefore // by name
}

// TakeBack makes the image records of name what they were before the import: for what
// cannot be announced. It is idempotent, and not safe for concurrent use.
// Records that another name of the archive needs, too, stay.
func (i Imported) TakeBack(ctx context.Context, name string) error {
	if len(i.before[name]) == 0 {
		return nil
	}
	alone := maps.Clone(i.before[name])
	for other, records := range i.before {
		if other != name {
			maps.DeleteFunc(alone, func(r string, _ *images.Image) bool { _, shared := records[r]; return shared })
		}
	}
	if err := i.c.restore(ctx, alone); err != nil {
		return err
	}
	delete(i.before, name)
	return nil
}

// ImportArchive reads a docker-archive or OCI layout, plain, gzip, zstd, bzip2 or lz4,
// and names what it brought: every image with a name in it, or with ref only the one of
// that name (an archive of one image is given that name). Artifacts, as charts and
// signatures, are left out. Where anything fails nothing is named, pinned or leased,
// and what was written is left to garbage collection.
func (c *Containerd) ImportArchive(ctx context.Context, r io.Reader, ref string) (out Imported, err error) {
	name := ForArchive + rand.Text()
	lctx, release, err := c.Lease(ctx, name)
	if err != nil {
		return Imported{}, errors.Join(err, c.dropLost(ctx, name)) // it may have been made all the same
	}
	out = Imported{c: c, before: map[string]recordsBefore{}}
	err = c.importArchive(lctx, r, ref, &out)
	err = errors.Join(err, release(ctx))
	if err == nil {
		return out, nil
	}
	undo, cancel := outlive(ctx, releaseGrace)
	defer cancel()
	for _, name := range slices.Sorted(maps.Keys(out.before)) {
		err = errors.Join(err, out.TakeBack(undo, name))
	}
	return Imported{}, errors.Join(err, c.DropLease(undo, name), c.collectIn(undo))
}

// dropLost drops a lease of which it is not known whether it was made.
func (c *Containerd) dropLost(ctx context.Context, name string) error {
	ctx, cancel := outlive(ctx, releaseGrace)
	defer cancel()
	if err := c.DropLease(ctx, name); err != nil && !errors.Is(err, ErrUnavailable) {
		return err
	}
	return nil
}

// importArchive names images last, when all of them are whole and unpacked.
func (c *Containerd) importArchive(ctx context.Context, r io.Reader, ref string, out *Imported) error {
	found, tags, err := c.readArchive(ctx, r)
	if err != nil {
		return err
	}
	chosen, leftOut, err := choose(found, ref)
	if err != nil {
		return err
	}
	if ref == "" {
		leftOut = append(tags, leftOut...)
	}
	for _, a := range chosen {
		if _, err := c.Walk(ctx, a.target); err != nil {
			return inArchive(err)
		}
	}
	for _, a := range chosen {
		if err := c.unpack(ctx, a.target); err != nil {
			return inArchive(err)
		}
	}
	for _, a := range chosen { // all before the first is named: they may share records
		if err := c.remember(ctx, a.ref, a.target, out.before); err != nil {
			return err
		}
	}
	for _, a := range chosen {
		if err := c.Publish(ctx, a.ref, a.target); err != nil {
			return err
		}
		out.Names = append(out.Names, a.ref)
	}
	slices.Sort(out.Names)
	out.Names, out.LeftOut = slices.Compact(out.Names), leftOut
	return nil
}

// inArchive says of an archive what is said of containerd.
func inArchive(err error) error {
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

// Settle unpacks and publishes an image whose blobs are all here. One that is for
// other platforms is named, so that it can be given to others, and not unpacked. It is
// idempotent; the caller holds a lease. The blobs here are not looked for again.
func (c *Containerd) Settle(ctx context.Context, ref string, target ocispec.Descriptor, here ...digest.Digest) error {
	if err := c.unpack(ctx, target); err != nil {
		return err
	}
	return c.Publish(ctx, ref, target, here...)
}

// unpack unpacks an image whose blobs are all here, unless it is for other platforms.
func (c *Containerd) unpack(ctx context.Context, target ocispec.Descriptor) error {
	nctx, cl, err := c.use(ctx)
	if err != nil {
		return err
	}
	cs := c.once(cl)
	if foreign, err := c.isForeign(nctx, cs, target); err != nil || foreign {
		return err
	}
	u, err := c.Unpacker(ctx, target)
	if err != nil || u == nil {
		return err
	}
	for _, l := range u.layers {
		if here, err := cs.has(nctx, l.Blob.Digest); err != nil {
			return fmt.Errorf("look for blob %s: %w", l.Blob.Digest, c.fail(err))
		} else if !here {
			return &MissingError{Target: target.Digest, Missing: l.Blob, What: "layer"}
		}
	}
	return u.Finish(ctx)
}

// collectIn is collect in the namespace.
func (c *Containerd) collectIn(ctx context.Context) error {
	ctx, _, err := c.use(ctx)
	if err != nil {
		return err
	}
	return c.collect(ctx)
}

// readArchive writes an archive's blobs to the content store.
func (c *Containerd) readArchive(ctx context.Context, r io.Reader) (found []archived, leftOut []string, _ error) {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return nil, nil, err
	}
	src := &sourceReader{r: r}
	plain, err := decompress(src)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNotArchive, src.or(err))
	}
	defer plain.Close()
	checked := checkedTar(&roomReader{r: plain, room: func() error { return c.cfg.Room(ctx) }})
	defer checked.Close()
	cs := &archiveStore{Store: cl.ContentStore(), c: c, prefix: leasePrefix + rand.Text() + "-", digests: map[string]digest.Digest{}}
	top, err := archive.ImportIndex(ctx, cs, checked)
	if err == nil { // it may be refused for its end
		_, err = io.Copy(io.Discard, checked)
	}
	if err == nil {
		err = cs.misnamed()
	}
	if err != nil {
		cs.abort(context.WithoutCancel(ctx))
		checked.Close()
		return nil, nil, c.notArchive(err, src, &checked.shape)
	}
	return c.inIndex(ctx, c.once(cl), top, &checked.shape)
}

// inIndex are the images and artifacts of an archive's index, and what is to be said of
// tags that none of them has.
func (c *Containerd) inIndex(ctx context.Context, cs *once, top ocispec.Descriptor, s *shape) (out []archived, leftOut []string, _ error) {
	p, err := content.ReadBlob(ctx, cs, top)
	if err != nil {
		return nil, nil, fmt.Errorf("import the archive: %w", c.fail(err))
	}
	var idx ocispec.Index
	if err := json.Unmarshal(p, &idx); err != nil {
		return nil, nil, fmt.Errorf("%w: its index.json is not an OCI index", ErrNotArchive)
	}
	for _, m := range idx.Manifests {
		a := archived{target: ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}}
		if a.kind, err = artifact.Classify(ctx, cs, m); err != nil {
			return nil, nil, fmt.Errorf("import the archive: %w", c.fail(err))
		}
		a.nameBy(m.Annotations)
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("%w: there is no image in it", ErrNotArchive)
	}
	if !s.layout {
		leftOut = nameByTags(out, s.tags)
	}
	return out, leftOut, nil
}

// notArchive tells what is wrong with an archive from what else went wrong.
func (c *Containerd) notArchive(err error, src *sourceReader, s *shape) error {
	var refused *refusedError
	var full interface{ Waiting() string }
	var syntax *json.SyntaxError
	var types *json.UnmarshalTypeError
	var replace *replaceError
	switch werr := c.fail(err); {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrNotArchive, refused)
	case src.err != nil, errors.As(err, &full), errors.As(err, &replace), errors.Is(werr, ErrUnavailable), errors.Is(err, context.Canceled):
		return fmt.Errorf("import the archive: %w", src.or(werr))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: %w", ErrNotArchive, tarError(s.entries, err))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it is cut off; create it again", ErrNotArchive)
	case s.refusal() != nil:
		return fmt.Errorf("%w: %w", ErrNotArchive, s.refusal())
	case errors.As(err, &syntax), errors.As(err, &types):
		return fmt.Errorf("%w: its manifest.json or oci-layout is not what docker save or an OCI layout has there", ErrNotArchive)
	case strings.HasPrefix(err.Error(), "unrecognized image format"):
		return fmt.Errorf("%w: it has neither a manifest.json nor an oci-layout with index.json at its top", ErrNotArchive)
	}
	return fmt.Errorf("%w: %w", ErrNotArchive, err)
}

// archiveStore is the content store for one archive. Its writers have names of
// their own: containerd's importer names them after the entries of the archive, so
// that it would go on with what the import of another one left unfinished.
type archiveStore struct {
	content.Store
	c      *Containerd
	prefix string

	mu      sync.Mutex
	digests map[string]digest.Digest // of what was committed, by the entry's name; "" of what was not
}

// replaceError says why a damaged blob could not be replaced: the archive is not at fault.
type replaceError struct{ error }

// Unwrap is the cause.
func (e *replaceError) Unwrap() error { return e.error }

// tarRef is what the importer puts before the name of an entry.
const tarRef = "tar-"

// Writer implements content.Ingester.
func (s *archiveStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	s.note(o.Ref, "")
	opts = append(opts, content.WithRef(s.prefix+o.Ref))
	w, err := s.Store.Writer(ctx, opts...)
	var labels map[string]string
	if errdefs.IsAlreadyExists(err) && o.Desc.Digest != "" {
		var removed bool
		var rerr error
		if removed, labels, rerr = s.c.makeWay(ctx, o.Desc.Digest); rerr != nil {
			return nil, &replaceError{rerr}
		} else if removed {
			w, err = s.Store.Writer(ctx, opts...)
		}
	}
	if err != nil {
		return nil, err
	}
	return &archiveWriter{Writer: w, store: s, ref: o.Ref, labels: labels, digester: digest.SHA256.Digester()}, nil
}

func (s *archiveStore) note(ref string, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digests[ref] = d
}

// Walk implements content.Manager. The importer looks for layers that are here already
// in a compressed form, to take them instead of those of the archive: damaged ones are
// passed over.
func (s *archiveStore) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	return s.Store.Walk(ctx, func(info content.Info) error {
		if intact, err := s.c.verify(ctx, info.Digest); err != nil || !intact {
			return nil
		}
		return fn(info)
	}, filters...)
}

// archiveWriter writes from the beginning to the end.
type archiveWriter struct {
	content.Writer
	store    *archiveStore
	ref      string
	labels   map[string]string // of the damaged blob in whose place this one comes
	digester digest.Digester   // containerd says what the digest is after Commit, and only where that went well
}

// Write implements content.Writer.
func (w *archiveWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.digester.Hash().Write(p[:n])
	return n, err
}

// Digest implements content.Writer.
func (w *archiveWriter) Digest() digest.Digest { return w.digester.Digest() }

// Commit implements content.Writer. What containerd has of the blob is replaced if it is
// damaged.
func (w *archiveWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	removed, labels, err := w.store.c.makeWay(ctx, w.Digest())
	if err != nil {
		return &replaceError{err}
	}
	if removed {
		w.labels = labels
	}
	if w.labels != nil {
		opts = append(opts, content.WithLabels(w.labels))
	}
	err = w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.store.note(w.ref, w.Digest())
	}
	return err
}

// misnamed is an error where an entry below blobs/ holds other bytes than its name
// says.
func (s *archiveStore) misnamed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, got := range s.digests {
		if want := digestInName(strings.TrimPrefix(ref, tarRef)); want != "" && got != "" && got != want {
			return refusef("what it has as %s has the digest %s", want, got)
		}
	}
	return nil
}

// digestInName is the SHA-256 digest that the name of an entry says, "" where it says
// none. It is plain hexadecimal in OCI layouts; rules_oci of Bazel writes HEX.tar.gz, others
// sha256:HEX.
func digestInName(entry string) digest.Digest {
	name, ok := strings.CutPrefix(entry, "blobs/"+string(digest.SHA256)+"/")
	if !ok {
		return ""
	}
	name = strings.TrimPrefix(name, string(digest.SHA256)+":")
	hex, _, _ := strings.Cut(name, ".")
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	if d.Validate() != nil {
		return ""
	}
	return d
}

// abort throws away what was not committed.
func (s *archiveStore) abort(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref, d := range s.digests {
		if d == "" {
			_ = s.Abort(ctx, s.prefix+ref) // garbage collection gets what is left
		}
	}
}

// roomEvery is after how many bytes of an archive it is asked whether there is room
// for more.
const roomEvery = 64 << 20

// roomReader ends the reading of an archive before the disk is full.
type roomReader struct {
	r    io.Reader
	room func() error
	left int64 // bytes until it is asked again
}

func (r *roomReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}

// sourceReader remembers how the source failed, so that a broken connection is
// not taken for a broken archive.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// or returns how the source failed, else err.
func (s *sourceReader) or(err error) error {
	if s.err != nil {
		return s.err
	}
	return err
}
