// Package catalog holds what all nodes of a cluster agree on: for each reference
// the newest announcement.
//
// It owns the announcement and its signed record, the rule which of two wins,
// versions, tombstones, the summary by which two nodes find their differences,
// and the file in data_dir. It never talks to a network and knows nothing of
// what is really on a host.
//
// Invariant: two catalogs that have seen the same records, in any order and any
// number of times, are equal; no record enters, from a peer or from the file,
// whose signature and bounds were not checked.
package catalog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/internal/text"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

const (
	// MaxRecordBytes bounds an encoded record.
	MaxRecordBytes = 4 << 10
	// maxReferenceBytes bounds a reference: 255 for the repository with its
	// registry, 128 for the tag (distribution/reference), 72 for a digest.
	maxReferenceBytes = 512
	maxNodeNameBytes  = 128
	maxSeedBytes      = chunk.MaxIndexBytes
	maxSelectors      = 16
	maxSelectorBytes  = 256
	// MaxVersion is what JSON carries without loss.
	MaxVersion = 1 << 53

	// domain is what signatures of announcements are made for.
	domain = "seeder announcement v1"
)

// Seed names the seed index of an image.
type Seed struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
}

// Announcement is the statement "reference stands for target, or is withdrawn".
type Announcement struct {
	Reference   string             `json:"ref"` // as CRI writes it
	Version     uint64             `json:"version"`
	Withdrawn   bool               `json:"withdrawn,omitempty"`
	Purge       bool               `json:"purge,omitempty"` // withdrawn, and every node removes it
	Force       bool               `json:"force,omitempty"` // also where containers use it
	Target      ocispec.Descriptor `json:"target"`          // media type, digest, size
	Seed        Seed               `json:"seed"`
	ImageBytes  int64              `json:"image_bytes"`  // all blobs as stored
	AnnouncedAt time.Time          `json:"at"`           // milliseconds; decides nothing but ties
	NodeName    string             `json:"node"`         // of the announcer, for people
	On          []string           `json:"on,omitempty"` // label selectors of the nodes it is for; all must hold
	// AnyPlatform says that the seed index is for every node, whatever platform the image
	// names, and that a build which follows is to be, too.
	AnyPlatform bool `json:"any_platform,omitempty"`
}

// Record is an announcement with its signature. The payload is kept as it was
// signed, so that a node passes on what a newer one added to it.
type Record struct {
	payload   []byte
	public    ed25519.PublicKey
	signature []byte
	ann       Announcement
	hash      [sha256.Size]byte // kept, since every comparison of two catalogs asks for it
}

// Sign makes the record of an announcement.
func Sign(id *trust.Identity, a Announcement) (Record, error) {
	a.AnnouncedAt = a.AnnouncedAt.UTC().Truncate(time.Millisecond)
	payload, err := json.Marshal(a)
	if err != nil {
		return Record{}, fmt.Errorf("encode: %w", err)
	}
	r := Record{payload: payload, public: id.Public(), signature: id.Sign(domain, payload), ann: a}
	if err := a.validate(); err != nil {
		return Record{}, err
	}
	b := r.Encode()
	if len(b) > MaxRecordBytes {
		return Record{}, fmt.Errorf("the announcement has %d bytes, at most %d are possible", len(b), MaxRecordBytes)
	}
	r.hash = sha256.Sum256(b)
	return r, nil
}

// Encode is the record as it travels and rests: version byte 1, public key (32
// bytes), signature (64 bytes), payload length (uvarint), payload (JSON).
func (r Record) Encode() []byte {
	b := make([]byte, 0, 1+ed25519.PublicKeySize+ed25519.SignatureSize+binary.MaxVarintLen32+len(r.payload))
	b = append(b, 1)
	b = append(b, r.public...)
	b = append(b, r.signature...)
	b = binary.AppendUvarint(b, uint64(len(r.payload)))
	return append(b, r.payload...)
}

// errRecord is wrapped by every refusal of Decode.
var errRecord = errors.New("invalid announcement record")

// Decode reads a record and believes nothing that its signature does not cover.
func Decode(b []byte) (Record, error) {
	const head = 1 + ed25519.PublicKeySize + ed25519.SignatureSize
	switch {
	case len(b) > MaxRecordBytes:
		return Record{}, fmt.Errorf("%w: %d bytes, at most %d", errRecord, len(b), MaxRecordBytes)
	case len(b) < head || b[0] != 1:
		return Record{}, fmt.Errorf("%w: too short or of an unknown version", errRecord)
	}
	b = bytes.Clone(b)
	r := Record{public: b[1 : 1+ed25519.PublicKeySize], signature: b[1+ed25519.PublicKeySize : head], hash: sha256.Sum256(b)}
	size, n := binary.Uvarint(b[head:])
	if n <= 0 || size != uint64(len(b)-head-n) || !bytes.Equal(binary.AppendUvarint(nil, size), b[head:head+n]) {
		return Record{}, fmt.Errorf("%w: wrong length", errRecord)
	}
	r.payload = b[head+n:]
	if !trust.Verify(r.public, domain, r.payload, r.signature) {
		return Record{}, fmt.Errorf("%w: the signature does not match", errRecord)
	}
	if err := json.Unmarshal(r.payload, &r.ann); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	if err := r.ann.validate(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errRecord, err)
	}
	return r, nil
}

// validate checks the bounds of every field.
func (a Announcement) validate() error {
	if err := plain("reference", a.Reference, maxReferenceBytes); err != nil {
		return err
	}
	if err := plain("node name", a.NodeName, maxNodeNameBytes); err != nil {
		return err
	}
	for _, d := range []digest.Digest{a.Target.Digest, a.Seed.Digest} {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("invalid sha256 digest %q", d)
		}
	}
	switch {
	case a.Version == 0 || a.Version > MaxVersion:
		return fmt.Errorf("invalid version %d: want 1 to %d", a.Version, uint64(MaxVersion))
	case a.Target.Size < 0 || a.ImageBytes < 0 || a.Seed.Size <= 0 || a.Seed.Size > maxSeedBytes:
		return errors.New("a size is out of bounds")
	case len(a.On) > maxSelectors:
		return fmt.Errorf("%d label selectors, at most %d", len(a.On), maxSelectors)
	case a.Purge && !a.Withdrawn:
		return errors.New("purge without withdrawal")
	case a.Force && !a.Purge:
		return errors.New("force without purge")
	}
	for _, s := range a.On {
		if err := plain("label selector", s, maxSelectorBytes); err != nil {
			return err
		}
	}
	return nil
}

// plain refuses text that is empty, too long, or not printable: it ends up on
// terminals and in file names' neighbourhood.
func plain(what, s string, limit int) error {
	if s == "" || len(s) > limit {
		return fmt.Errorf("%s is empty or longer than %d bytes", what, limit)
	}
	if !text.Valid(s, limit) || strings.Contains(s, " ") {
		return fmt.Errorf("%s %q has characters that are not printable", what, s)
	}
	return nil
}

// Announcement is what the record says.
func (r Record) Announcement() Announcement { return r.ann }

// AnnouncedBy is the id of the node that signed the record.
func (r Record) AnnouncedBy() trust.NodeID { return trust.IDOf(r.public) }

// Hash names the record: the SHA-256 of its encoding.
func (r Record) Hash() [sha256.Size]byte { return r.hash }

// Newer reports whether a wins over b. It is a total order on records of one
// reference: the higher version, then the later time, then the higher node id,
// then the larger encoding. So every node ends with the same winner whatever
// the order of arrival, and clocks decide nothing but ties.
func Newer(a, b Record) bool {
	switch {
	case a.ann.Version != b.ann.Version:
		return a.ann.Version > b.ann.Version
	case !a.ann.AnnouncedAt.Equal(b.ann.AnnouncedAt):
		return a.ann.AnnouncedAt.After(b.ann.AnnouncedAt)
	case !bytes.Equal(a.public, b.public):
		return a.AnnouncedBy() > b.AnnouncedBy()
	}
	return bytes.Compare(a.Encode(), b.Encode()) > 0
}

// Buckets is the summary of a catalog: records fall into 256 buckets by the
// first byte of the SHA-256 of their reference, and a bucket is the XOR of the
// first 8 bytes of its records' hashes. Two catalogs differ where a bucket does.
type Buckets [256]uint64

// BucketsBytes is the length of the wire form of Buckets.
const BucketsBytes = 256 * 8

// Encode is the wire form: 256 big-endian 64-bit numbers.
func (b Buckets) Encode() []byte {
	out := make([]byte, 0, BucketsBytes)
	for _, v := range b {
		out = binary.BigEndian.AppendUint64(out, v)
	}
	return out
}

// DecodeBuckets reads the wire form.
func DecodeBuckets(p []byte) (Buckets, error) {
	var b Buckets
	if len(p) != BucketsBytes {
		return b, fmt.Errorf("catalog summary of %d bytes, want %d", len(p), BucketsBytes)
	}
	for i := range b {
		b[i] = binary.BigEndian.Uint64(p[i*8:])
	}
	return b, nil
}

// bucketOf is the bucket of a reference.
func bucketOf(ref string) byte {
	sum := sha256.Sum256([]byte(ref))
	return sum[0]
}
