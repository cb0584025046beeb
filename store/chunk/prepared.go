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

// PrepareOptions say how an image of this host is made ready to be announced.
type PrepareOptions struct {
	// At is the target that the reference is to have, as of an earlier version that is
	// still here; empty: the one that it has.
	At digest.Digest
	// AnyPlatform is for every host, whatever platform the image says it is for.
	AnyPlatform bool
	// Settled is the target that was unpacked and named under the reference just now, by an
	// import: it is not done again. Empty: nothing was.
	Settled digest.Digest
}

// SeedDigest is that of the seed index.
func (p Prepared) SeedDigest() digest.Digest { return digest.FromBytes(p.Index) }
