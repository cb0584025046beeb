package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Publisher takes pushed images to the cluster.
type Publisher interface {
	// MayAnnounce is an error where this host's announcements count for nothing.
	MayAnnounce() error
	// Publish imports an OCI archive, in which the image is called ref, and announces it. On
	// an error nothing of it is visible; it wraps ErrNotNow where the image is not to blame.
	Publish(ctx context.Context, archive io.Reader, ref string) error
	// Room is an error where the disk of data_dir cannot take so many bytes more.
	Room(ctx context.Context, bytes int64) error
}

// pusher takes images that clients push.
type pusher struct {
	*backend
	staging *staging
	to      Publisher
	partial bool // of an index, manifests of other platforms may be missing, as in what docker save writes
}

func (p *pusher) add(f *ociregistry.Funcs) {
	f.PushBlobChunked_ = p.pushBlobChunked
	f.PushBlobChunkedResume_ = p.pushBlobChunkedResume
	f.MountBlob_ = p.mountBlob
	f.PushManifest_ = p.pushManifest
	f.ResolveBlob_ = p.resolveAny
}

// either opens a blob that was pushed or that this host has.
func (p *pusher) either(ctx context.Context, d digest.Digest) (Blob, error) {
	blob, err := p.staging.open(d)
	if errors.Is(err, fs.ErrNotExist) {
		blob, err = p.images.Held(ctx, d)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ociregistry.ErrBlobUnknown, d)
	}
	if err != nil {
		return nil, unavailable(err)
	}
	return blob, nil
}

// resolveAny tells a client which blobs it need not send, whatever repository has them.
func (p *pusher) resolveAny(ctx context.Context, _ string, d digest.Digest) (ociregistry.Descriptor, error) {
	blob, err := p.either(ctx, d)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	return blobDescriptor(blob, d), blob.Close()
}

func (p *pusher) mountBlob(ctx context.Context, _, repo string, d digest.Digest) (ociregistry.Descriptor, error) {
	return p.resolveAny(ctx, repo, d)
}

func (p *pusher) pushBlobChunked(ctx context.Context, repo string, _ int) (ociregistry.BlobWriter, error) {
	if err := p.may(ctx, repo); err != nil {
		return nil, err
	}
	u, err := p.staging.begin(ctx)
	if err != nil {
		return nil, err // no interface with a nil upload in it
	}
	return u, nil
}

func (p *pusher) pushBlobChunkedResume(ctx context.Context, _, id string, offset int64, _ int) (ociregistry.BlobWriter, error) {
	if _, ranged := ctx.Value(rangedKey{}).(bool); offset == 0 && !ranged {
		offset = atEnd
	}
	u, err := p.staging.resume(ctx, id, offset)
	if err != nil {
		return nil, err
	}
	return u, nil
}

// mounts is the handler that begins an upload where a blob that is to be mounted is not here,
// as the API wants it.
func (p *pusher) mounts(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if d := digest.Digest(q.Get("mount")); r.Method == http.MethodPost && d != "" {
			blob, err := p.either(r.Context(), d)
			if err == nil {
				err = blob.Close()
			}
			if err != nil {
				q.Del("mount")
			} else if q.Get("from") == "" {
				// Blobs belong to no repository here, and ociserver mounts from none that is not named.
				q.Set("from", "any")
			}
			r.URL.RawQuery = q.Encode()
		}
		if r.Header.Get("Content-Range") != "" {
			r = r.WithContext(context.WithValue(r.Context(), rangedKey{}, true))
		}
		api.ServeHTTP(w, r)
	})
}

// rangedKey marks the context of a request that says where in the blob its body belongs.
// ociserver takes a request without that for one of offset 0.
type rangedKey struct{}

// may refuses before anything is sent what would be refused at the end.
func (p *pusher) may(ctx context.Context, repo string) error {
	if _, err := repository(ctx, repo); err != nil {
		return err
	}
	return p.mayAnnounce()
}

// mayAnnounce refuses in the host's own words where its announcements count for nothing.
func (p *pusher) mayAnnounce() error {
	if err := p.to.MayAnnounce(); err != nil {
		return ociregistry.NewError(err.Error(), ociregistry.ErrDenied.Code(), nil)
	}
	return nil
}

// pushManifest keeps a manifest, all of whose blobs have to be here. With a tag the image
// is imported and announced.
func (p *pusher) pushManifest(ctx context.Context, repo, tag string, content []byte, mediaType string) (ociregistry.Descriptor, error) {
	if err := p.may(ctx, repo); err != nil {
		return ociregistry.Descriptor{}, err
	}
	if inside := mediaTypeOf(content); inside == "" {
		return ociregistry.Descriptor{}, fmt.Errorf("%w: it is neither a manifest nor an index", ociregistry.ErrManifestInvalid)
	} else if mediaType == "" || mediaType == blobMediaType {
		mediaType = inside
	}
	target := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if _, err := p.children(ctx, content); err != nil {
		return ociregistry.Descriptor{}, err
	}
	if err := p.staging.put(ctx, content); err != nil {
		return ociregistry.Descriptor{}, err
	}
	if tag == "" {
		return target, nil
	}
	full, err := repository(ctx, repo)
	if err != nil {
		return ociregistry.Descriptor{}, err
	}
	return target, p.publish(ctx, target, full+":"+tag)
}

// publish hands an image over. What was pushed of it is dropped once it is imported.
func (p *pusher) publish(ctx context.Context, target ocispec.Descriptor, ref string) error {
	blobs, err := p.closure(ctx, target.Digest)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() { // ends with the reader, which is closed below
		err := p.pack(ctx, w, target, ref, blobs)
		w.CloseWithError(err)
		packed <- err
	}()
	err = p.to.Publish(ctx, r, ref)
	r.CloseWithError(err)
	if perr := <-packed; err == nil && perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		err = perr
	}
	if err != nil {
		return ofPush(ref, err)
	}
	return p.staging.remove(blobs)
}

// maxImageBlobs bounds the blobs of an image, over all its platforms.
const maxImageBlobs = 10_000

// closure are a manifest and all that it needs, the manifest first.
func (p *pusher) closure(ctx context.Context, top digest.Digest) ([]digest.Digest, error) {
	seen := map[digest.Digest]bool{top: true}
	blobs := []digest.Digest{top}
	manifests := []digest.Digest{top}
	for len(manifests) > 0 {
		blob, err := p.either(ctx, manifests[0])
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(io.LimitReader(blob.Whole(), maxManifestBytes))
		if err := errors.Join(err, blob.Close()); err != nil {
			return nil, unavailable(err)
		}
		manifests = manifests[1:]
		below, err := p.children(ctx, content)
		if err != nil {
			return nil, err
		}
		for _, c := range below {
			if seen[c.Digest] {
				continue
			}
			if seen[c.Digest] = true; len(seen) > maxImageBlobs {
				return nil, fmt.Errorf("%w: it has more than %d blobs", ociregistry.ErrManifestInvalid, maxImageBlobs)
			}
			blobs = append(blobs, c.Digest)
			if isManifest(c.MediaType) {
				manifests = append(manifests, c.Digest)
			}
		}
	}
	return blobs, nil
}

func isManifest(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json":
		return true
	}
	return false
}

// children are what a manifest or an index names, all of which has to be here; but see partial.
func (p *pusher) children(ctx context.Context, content []byte) ([]ocispec.Descriptor, error) {
	var m struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", ociregistry.ErrManifestInvalid, err)
	}
	below := append(m.Manifests, m.Layers...)
	if m.Config != nil {
		below = append(below, *m.Config)
	}
	if len(below) > maxImageBlobs {
		return nil, fmt.Errorf("%w: it has more than %d blobs", ociregistry.ErrManifestInvalid, maxImageBlobs)
	}
	here := below[:0]
	for _, d := range below {
		blob, err := p.either(ctx, d.Digest)
		if errors.Is(err, ociregistry.ErrBlobUnknown) {
			if p.partial && isManifest(d.MediaType) {
				continue
			}
			return nil, fmt.Errorf("%w: %s", ociregistry.ErrManifestBlobUnknown, d.Digest)
		}
		if err != nil {
			return nil, err
		}
		size := blob.Size()
		if err := blob.Close(); err != nil {
			return nil, unavailable(err)
		}
		if size != d.Size || isManifest(d.MediaType) && size > maxManifestBytes {
			return nil, fmt.Errorf("%w: %s has %d bytes", ociregistry.ErrManifestInvalid, d.Digest, size)
		}
		here = append(here, d)
	}
	return here, nil
}

// pack writes an OCI archive of an image.
func (p *pusher) pack(ctx context.Context, w io.Writer, target ocispec.Descriptor, ref string, blobs []digest.Digest) error {
	out := tar.NewWriter(w)
	target.Annotations = map[string]string{"io.containerd.image.name": ref}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{target}})
	if err != nil {
		return fmt.Errorf("encode the archive's index: %w", err)
	}
	for name, content := range map[string][]byte{ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`), ocispec.ImageIndexFile: index} {
		if err := entry(out, name, int64(len(content)), bytes.NewReader(content)); err != nil {
			return err
		}
	}
	for _, d := range blobs {
		blob, err := p.either(ctx, d)
		if err != nil {
			return err
		}
		err = entry(out, ocispec.ImageBlobsDir+"/"+d.Algorithm().String()+"/"+d.Encoded(), blob.Size(), blob.Whole())
		if err := errors.Join(err, blob.Close()); err != nil {
			return err
		}
	}
	return out.Close()
}

func entry(out *tar.Writer, name string, size int64, r io.Reader) error {
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}); err != nil {
		return err
	}
	_, err := io.Copy(out, r)
	return err
}

// stagedBlob is a blob that was pushed: it was verified when it was kept, and is verified
// again when it is imported.
type stagedBlob struct {
	*os.File
	size int64
}

// Size is that of the blob in bytes.
func (b stagedBlob) Size() int64 { return b.size }

// Whole reads all of it.
func (b stagedBlob) Whole() io.Reader { return io.NewSectionReader(b.File, 0, b.size) }

// patientBody gives the client time as long as it sends something.
type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
}

// Read implements io.Reader.
func (b *patientBody) Read(p []byte) (int, error) {
	if err := b.control.SetReadDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("set the deadline of a request: %w", err)
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil { // what is waited for now is the answer
		b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
