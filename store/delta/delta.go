// Package delta makes the difference between two builds of a layer, and a build again from
// the one before and the difference: to the bit.
//
// It owns the format of a delta, its two codecs and their bounds. It never chooses a base,
// never knows a peer or containerd, and keeps no file and no goroutine of its own.
//
// Words: the base is the blob that a host has, the target is the one that it wants, a delta
// is what makes the second from the first. A stream is what the codec compares: the bytes of
// a blob, or the tokens and the block headers of a gzip blob. A page is a short stretch of the
// streams of a base, and can be read without what is before it.
//
// Kind Bytes: stretches of the target that lie in the base, too, are found by a table of
// seeds, extended while they agree better than not, and subtracted; the differences, which are
// nearly all zero, and what has no counterpart are compressed. This is bsdiff's idea (Percival,
// 2003) without its suffix array. Kind Deflate: the same over the tokens (literals, and pairs of
// length and distance) of a gzip blob and over its block headers, which Huffman codes again
// turn into the same bits. This is puffin's idea (Android and ChromeOS updates). No compressor
// is run again, so none has to be known.
//
// Memory, for blobs of any size: Encode keeps at most 64 MiB of heap in use and Decode 48 MiB;
// for kind Deflate a byte for each 800 or so of the base besides, and never more than one for
// each 140, whoever wrote it. The table of seeds is bounded; its step grows with the base.
//
// Invariant: Encode returns without an error only when its own delta, decoded by Decode's
// code, gave the target's digest. Decode writes at most the bytes that the header names, reads
// nothing outside the base, and its time and memory are bounded by these sizes, whatever the
// delta has. What it wrote is right only when it returns nil.
package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// Why there is no delta, or why one gave no target.
var (
	// ErrRefused: this kind cannot give the target back, or cannot read the base.
	ErrRefused = errors.New("this kind of delta does not fit")
	// ErrNotWorth: the delta is longer than what Encode was allowed.
	ErrNotWorth = errors.New("the delta does not pay")
	// ErrInvalid: the delta is damaged, or no delta.
	ErrInvalid = errors.New("invalid delta")
	// ErrMismatch: what the delta made is not the target. The base or the delta is another one.
	ErrMismatch = errors.New("the delta and the base do not give the target")
)

// Kind is the codec of a delta.
type Kind byte

// The codecs. Their numbers are part of the format.
const (
	Bytes   Kind = 1 // any two blobs
	Deflate Kind = 2 // two gzip blobs
)

// String is the name of a kind in logs and reports.
func (k Kind) String() string {
	switch k {
	case Bytes:
		return "bytes"
	case Deflate:
		return "deflate"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// KindOf is the codec for a pair of blobs by their first bytes (4 are enough): Deflate for
// two of gzip, Bytes for two that are not compressed. Other pairs are refused: a blob of zstd
// cannot be given back to the bit, and one of gzip shares nothing as bytes with any other.
func KindOf(base, target []byte) (Kind, error) {
	switch b, t := packing(base), packing(target); {
	case b == "gzip" && t == "gzip":
		return Deflate, nil
	case b == "" && t == "":
		return Bytes, nil
	default:
		return 0, fmt.Errorf("%w: base and target are packed as %q and %q, want both gzip or neither packed", ErrRefused, b, t)
	}
}

func packing(head []byte) string {
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return "gzip"
	case len(head) >= 4 && string(head[:4]) == "\x28\xb5\x2f\xfd":
		return "zstd"
	}
	return ""
}

// Blob is a base or a target as a file.
type Blob struct {
	io.ReaderAt
	Digest digest.Digest // sha256
	Bytes  int64
}

// Encode writes the delta of kind from base to target, and has decoded it when it returns.
// What it wrote is a delta only when the error is nil. It stops with ErrNotWorth once more
// than most bytes are written; 0 is no such bound. It returns the header, and the length of
// the delta in bytes. ErrRefused says that the kind cannot give the target back.
func Encode(ctx context.Context, w io.Writer, kind Kind, base, target Blob, most int64) (Header, int64, error) {
	h := Header{Kind: kind, Base: base.Digest, Target: target.Digest, BaseBytes: base.Bytes, TargetBytes: target.Bytes}
	n, err := encode(ctx, w, h, base, target, most)
	if err != nil {
		return Header{}, 0, fmt.Errorf("make a delta of kind %s from %s to %s: %w", kind, base.Digest, target.Digest, err)
	}
	return h, n, nil
}

// Decode reads a delta to its end and writes its target to w as it goes. Nothing of what was
// written may be used unless it returns nil: then it has the target's digest. base.Digest
// and base.Bytes have to be those that the delta was made from. A delta is bounded by its
// reader: the caller says how much of it there is.
func Decode(ctx context.Context, w io.Writer, delta io.Reader, base Blob) (Header, error) {
	h, err := ReadHeader(delta)
	if err != nil {
		return Header{}, err
	}
	if h.Base != base.Digest || h.BaseBytes != base.Bytes {
		return h, fmt.Errorf("decode the delta of %s: its base is %s of %d bytes, not %s of %d: %w",
			h.Target, h.Base, h.BaseBytes, base.Digest, base.Bytes, ErrMismatch)
	}
	var old []spans
	for _, c := range newCaches(sourcesOf(h.Kind, base), h) {
		old = append(old, c)
	}
	d := newDecoder(h, old, w)
	defer d.close()
	for {
		if ctx.Err() != nil {
			return h, context.Cause(ctx)
		}
		more, err := d.segment(delta)
		if errors.Is(err, ErrRefused) { // Encode could read it
			err = fmt.Errorf("%v: %w", err, ErrMismatch)
		}
		if err != nil {
			return h, fmt.Errorf("decode the delta of %s: %w", h.Target, err)
		}
		if !more {
			break
		}
	}
	var end [1]byte
	if _, err := io.ReadFull(delta, end[:]); err == nil {
		return h, fmt.Errorf("decode the delta of %s: bytes after its end: %w", h.Target, ErrInvalid)
	} else if !errors.Is(err, io.EOF) {
		return h, fmt.Errorf("decode the delta of %s: read its end: %w", h.Target, err)
	}
	if err := d.finish(); err != nil {
		return h, fmt.Errorf("decode the delta of %s: %w", h.Target, err)
	}
	return h, nil
}

// sink takes the target: it counts, sums, and refuses what is longer than it should be.
type sink struct {
	w    io.Writer
	sum  hash.Hash
	left int64
}

func newSink(w io.Writer, bytes int64) *sink { return &sink{w: w, sum: sha256.New(), left: bytes} }

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	if int64(len(p)) > s.left {
		return 0, fmt.Errorf("more bytes than the target has: %w", ErrInvalid)
	}
	s.left -= int64(len(p))
	s.sum.Write(p)
	n, err := s.w.Write(p)
	if err != nil {
		return n, fmt.Errorf("write the target: %w", err)
	}
	return n, nil
}

// check compares what was written with the target of the header.
func (s *sink) check(target digest.Digest) error {
	if s.left > 0 {
		return fmt.Errorf("the delta ends %d bytes before the target: %w", s.left, ErrInvalid)
	}
	if got := digest.NewDigest(digest.SHA256, s.sum); got != target {
		return fmt.Errorf("it gave %s: %w", got, ErrMismatch)
	}
	return nil
}
