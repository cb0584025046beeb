package chunk

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// DeltaMediaType is that of a delta as the only blob, and the target, of a seed index.
const DeltaMediaType = "application/vnd.seeder.layer.delta.v1"

// The kinds of deltas, as they are named in an offer: of layers that are not compressed, and
// of gzip layers, which take several times longer to make and to apply.
const (
	DeltaBytes   = "bytes"
	DeltaDeflate = "deflate"
)

// The bounds of deltas, for those who make them and for those who fetch them.
const (
	// MaxBases is how many layers an asking host may name.
	MaxBases = 256
	// MinDeltaLayer is the size of the smallest layer that a delta is made of, in bytes: a
	// smaller one is there in a moment.
	MinDeltaLayer = 1 << 20
	// MostOfLayer is the largest part of a layer that its delta may be: a larger one is not
	// worth its bytes and its time.
	MostOfLayer = 0.5
)

// Offer is a delta that a host has of a layer, or is making, or why there is none. Nobody
// has to believe it: what comes of it is verified like every chunk.
type Offer struct {
	Target digest.Digest // the layer that it makes
	Base   digest.Digest // the layer that it makes it from; empty: there is none
	Kind   string        // DeltaBytes or DeltaDeflate; empty where there is none
	Seed   digest.Digest // of the seed index of the delta; empty: it is not ready
	Bytes  int64         // of the delta; 0: not known yet
	After  time.Duration // until it is ready, as estimated; 0: it is, or there is none
	Why    string        // why there is none; empty where there is one
}

// Ready reports whether the delta can be fetched.
func (o Offer) Ready() bool { return o.Seed != "" }

// Pending reports whether the delta is being made.
func (o Offer) Pending() bool { return o.Seed == "" && o.Why == "" }
