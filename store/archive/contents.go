package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/delta"
	"seeder/store/imageref"
)

// The entries that a delta archive begins with. Tools that read OCI layouts refuse the
// second one for its version, and say what it is: an archive of which they would miss layers
// must not become an image.
const (
	ContentsName    = "seeder-delta.json"
	LayoutName      = "oci-layout"
	DeltaLayout     = `{"imageLayoutVersion":"seeder-delta-1, which only seeder reads: seeder announce --from FILE"}` + "\n"
	contentsVersion = 1
)

// ImageName is the annotation by which containerd, Docker and BuildKit name an image of an OCI
// layout.
const ImageName = images.AnnotationImageName

// maxPieceBytes bounds the size of a blob that a delta archive names: 1 TiB.
const maxPieceBytes = 1 << 40

// Contents is the first entry of a delta archive, as JSON: all of what is in the archive,
// and all of what the host that takes it has to have. Digests are sha256, sizes in bytes.
type Contents struct {
	Version int    `json:"version"` // of the format: 1
	Image   Called `json:"image"`   // what the archive makes
	Since   Called `json:"since"`   // the earlier build
	// Needs are blobs of the earlier build: those that the image has, too, and the bases of
	// deltas.
	Needs  []Piece `json:"needs"`
	Blobs  []Piece `json:"blobs"`  // that are in the archive as they are
	Deltas []Delta `json:"deltas"` // that are in the archive
}

// Called is an image and its reference.
type Called struct {
	Reference string        `json:"reference"` // "" where it has none
	MediaType string        `json:"media_type,omitempty"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size,omitempty"`
}

// Piece is a blob.
type Piece struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// Delta is a delta (store/delta) as a blob, the layer that it makes, and from which.
type Delta struct {
	Piece
	Kind   string        `json:"kind"` // bytes or deflate
	Base   digest.Digest `json:"base"` // one of Needs
	Target Piece         `json:"target"`
}

// Encode is the entry's text. The same contents have the same text.
func (c Contents) Encode() ([]byte, error) {
	c.Version = contentsVersion
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("contents of a delta archive: %w", err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", " ")
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("contents of a delta archive: %w", err)
	}
	return out.Bytes(), nil
}

// decodeContents reads the entry's text, of which there are at most maxArchiveDocBytes.
func decodeContents(r io.Reader) (Contents, error) {
	var c Contents
	p, err := io.ReadAll(io.LimitReader(r, maxArchiveDocBytes+1))
	if err != nil {
		return Contents{}, err
	}
	if len(p) > maxArchiveDocBytes {
		return Contents{}, refusef("%s has more than %d bytes", ContentsName, maxArchiveDocBytes)
	}
	if err := checkValues(ContentsName, p); err != nil {
		return Contents{}, err
	}
	if err := json.Unmarshal(p, &c); err != nil {
		return Contents{}, refusef("invalid %s: %v", ContentsName, err)
	}
	if c.Version != contentsVersion {
		return Contents{}, refusef("a delta archive of version %d; this version of seeder knows %d", c.Version, contentsVersion)
	}
	if err := c.validate(); err != nil {
		return Contents{}, refusef("invalid %s: %v", ContentsName, err)
	}
	return c, nil
}

func (c Contents) validate() error {
	if n := len(c.Needs) + len(c.Blobs) + len(c.Deltas); n > maxImageBlobs {
		return fmt.Errorf("%d blobs, at most %d", n, maxImageBlobs)
	}
	for _, called := range []Called{c.Image, c.Since} {
		if err := (Piece{called.Digest, called.Size}).validate(); err != nil {
			return err
		}
		if full, err := imageref.Normalize(called.Reference); called.Reference != "" && (err != nil || full != called.Reference) {
			return fmt.Errorf("invalid reference %q", called.Reference)
		}
	}
	if c.Image.Reference == "" {
		return errors.New("the image has no reference")
	}
	needs, holds, makes := map[digest.Digest]bool{}, map[digest.Digest]bool{}, map[digest.Digest]bool{}
	once := func(in map[digest.Digest]bool, p Piece) error {
		if err := p.validate(); err != nil {
			return err
		}
		if in[p.Digest] {
			return fmt.Errorf("blob %s twice", p.Digest)
		}
		in[p.Digest] = true
		return nil
	}
	for _, p := range c.Needs {
		if err := once(needs, p); err != nil {
			return err
		}
	}
	for _, p := range c.Blobs {
		if err := errors.Join(once(holds, p), once(makes, p)); err != nil {
			return err
		}
	}
	for _, d := range c.Deltas {
		if err := errors.Join(once(holds, d.Piece), once(makes, d.Target)); err != nil {
			return err
		}
		if d.Kind != delta.Bytes.String() && d.Kind != delta.Deflate.String() {
			return fmt.Errorf("a delta of kind %q", d.Kind)
		}
		if !needs[d.Base] {
			return fmt.Errorf("the base %s of a delta is not among what is needed", d.Base)
		}
	}
	return nil
}

func (p Piece) validate() error {
	if err := p.Digest.Validate(); err != nil || p.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q, want sha256", p.Digest)
	}
	if p.Size < 0 || p.Size > maxPieceBytes {
		return fmt.Errorf("blob %s of %d bytes, want 0 to %d", p.Digest, p.Size, int64(maxPieceBytes))
	}
	return nil
}

// target is the image as containerd names it.
func (c Contents) target() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: c.Image.MediaType, Digest: c.Image.Digest, Size: c.Image.Size}
}

// BlobName is the name of the entry of a blob, as OCI layouts have it.
func BlobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// IsDelta reports whether a file that begins so (512 bytes) is a delta archive.
func IsDelta(head []byte) bool {
	return bytes.HasPrefix(head, append([]byte(ContentsName), 0))
}
