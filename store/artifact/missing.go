package artifact

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
		return Absentf("the archive leaves out the foreign layer %s (%d bytes) of image %s, as its builder was configured to do; save the image with it",
			missing.Missing.Digest, missing.Missing.Size, missing.Target)
	}
	return Absentf("the archive is incomplete: %s %s (%d bytes) of image %s is not in it",
		missing.What, missing.Missing.Digest, missing.Missing.Size, missing.Target)
}

// absentError says what is not there. errors.Is finds fs.ErrNotExist in it, of whose
// text nobody is the wiser.
type absentError struct{ text string }

// Absentf makes an error in which errors.Is finds fs.ErrNotExist.
func Absentf(format string, args ...any) error { return &absentError{fmt.Sprintf(format, args...)} }

func (e *absentError) Error() string { return e.text }

// Unwrap makes errors.Is find fs.ErrNotExist.
func (e *absentError) Unwrap() error { return fs.ErrNotExist }
