package chunk

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Prepared is an image of this host that is ready to be announced: others fetch it by its
// seed index, which the store keeps.
type Prepared struct {
	Reference string
	Target    ocispec.Descriptor
	Index     []byte // the seed index
	Bytes     int64  // of all blobs as stored
	Said      string // what is worth a line about its name in containerd; empty where nothing is
}

// SeedDigest is that of the seed index.
func (p Prepared) SeedDigest() digest.Digest { return digest.FromBytes(p.Index) }
