// Package swarm decides which chunk of an image comes from which peer and when, and which
// peers are served from here.
//
// Words: a chunk is a fixed-size range of one blob; the chunks of all blobs of
// a seed index are numbered through, 0 … Len-1. A frame is a chunk as it
// travels. A neighbour is a peer whose haves this node follows. A complete node
// holds every chunk and super-seeds: it picks what it hands out itself.
//
// It owns the policy (pure functions of values and now) and the state of the
// running fetches and uploads. It never opens a socket, never reads a clock
// other than time.Now, never touches a disk, and never sees a byte of a chunk
// that it could interpret: transport and storage come in through the small
// interfaces below.
//
// Invariant: a chunk counts as held only after Chunks.Put has reported it as
// verified. A peer that sent a frame that does not verify is not asked for a while, and no
// other peer is blamed for it.
package swarm

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// Peer is another node as a fetch sees it.
type Peer struct {
	Name     string // node name, unique in the cluster
	Address  string // transfer address, host:port
	Complete bool   // said to hold every chunk; a hint
}

// Chunks is what this node holds of one image. It is safe for concurrent use.
type Chunks interface {
	// Len is the number of chunks, at most MaxChunks.
	Len() int
	// Bytes is the raw length of chunk n in bytes.
	Bytes(n int) int64
	// Have is a copy of what is held now and wanted here: chunks that this host
	// does not need (another platform's) count as neither held nor missing.
	Have() chunk.Bitmap
	// Wanted is the set of chunks that this host needs, held or not.
	Wanted() chunk.Bitmap
	// Put verifies a frame and stages it. verified is false with a nil error
	// where the frame does not decode to the chunk's digest: the peer is at
	// fault. A non-nil error is this host's own trouble (disk full, closed).
	// payload is not kept after the call.
	Put(ctx context.Context, n int, enc chunk.Encoding, payload []byte) (verified bool, err error)
	// Frame opens a held chunk as it travels. The error wraps fs.ErrNotExist
	// where the chunk is not (or no longer) held.
	Frame(ctx context.Context, n int) (chunk.Frame, error)
}

// Reply is a chunk on its way in. Payload is that of what Buffer lent.
type Reply struct {
	Chunk    int
	Encoding chunk.Encoding
	Payload  []byte
	From     string        // id that the connection proved; empty: none
	Trip     time.Duration // to the peer and back, as the connection knows it; 0: unknown
}

// Errors that a Transport returns for a peer's refusals, matched by errors.Is.
// Any other error is a broken or silent peer.
var (
	// ErrNotHeld: the peer does not hold that chunk or does not know the seed.
	ErrNotHeld = errors.New("peer does not hold it")
	// ErrCrowded: a complete peer that already has as many requesters as it takes;
	// ask others.
	ErrCrowded = errors.New("peer has enough requesters")
	// ErrNothing: none of the wanted chunks can be had from this peer.
	ErrNothing = errors.New("peer has none of the wanted chunks")
)

// BusyError is a peer's word that its queue is full.
type BusyError struct {
	RetryAfter time.Duration // bounded by the transport to [1ms, 10s]
}

func (e *BusyError) Error() string { return "peer is busy, retry after " + e.RetryAfter.String() }

// Haves is one message of a peer's have stream: the first one of a stream
// carries the whole map, later ones the chunks that came since.
type Haves struct {
	Map      chunk.Bitmap // nil in later messages
	New      []int        // chunk numbers, each within Len
	Complete bool         // holds everything there is
}

// Transport reaches peers. Every call is bounded in bytes by the transport and
// in time by ctx. It is safe for concurrent use.
type Transport interface {
	// FollowHaves calls fn for the peer's have-map (length chunks bits) and each
	// change of it, in order, never concurrently, until ctx ends or the stream
	// breaks; the error says which. A peer that says nothing for 15 s (it sends
	// keep-alives every 5 s) is broken.
	FollowHaves(ctx context.Context, p Peer, seed digest.Digest, chunks int, fn func(Haves)) error
	// Chunk fetches chunk n into what buf lends once the frame's length is known.
	Chunk(ctx context.Context, p Peer, seed digest.Digest, n int, buf Buffer) (Reply, error)
	// Next lets a complete peer choose one of the chunks in want.
	Next(ctx context.Context, p Peer, seed digest.Digest, want chunk.Bitmap, buf Buffer) (Reply, error)
}

// Buffer lends memory for the frame of chunk n, of so many bytes, once; nil where that is
// more than the chunk that was asked for.
type Buffer func(n int, bytes int64) *Incoming

// Finder finds peers of a swarm. Peers registers this node with the owners of
// the seed (see Tracker) and returns at most 32 peers, without this node.
type Finder interface {
	Peers(ctx context.Context, seed digest.Digest, complete bool) ([]Peer, error)
}
