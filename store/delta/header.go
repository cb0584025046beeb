package delta

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

const (
	magic   = "SEEDELT"
	version = 1
	// HeaderBytes is the length of the header of a delta: magic, version, kind, the two
	// digests, the two sizes.
	HeaderBytes = len(magic) + 2 + 2*32 + 2*8
	// maxBlobBytes bounds the size of a base and of a target: 1 TiB.
	maxBlobBytes = 1 << 40
)

// Header is the beginning of a delta: from what it makes what.
type Header struct {
	Kind                   Kind
	Base, Target           digest.Digest // sha256
	BaseBytes, TargetBytes int64
}

// validate checks all that Encode is given and Decode reads.
func (h Header) validate() error {
	if h.Kind != Bytes && h.Kind != Deflate {
		return fmt.Errorf("%s is not known, want %s or %s", h.Kind, Bytes, Deflate)
	}
	for _, d := range []digest.Digest{h.Base, h.Target} {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("digest %q, want sha256", d)
		}
	}
	for _, n := range []int64{h.BaseBytes, h.TargetBytes} {
		if n < 0 || n > maxBlobBytes {
			return fmt.Errorf("a blob of %d bytes, want 0 to %d", n, int64(maxBlobBytes))
		}
	}
	return nil
}

func (h Header) encode() ([]byte, error) {
	if err := h.validate(); err != nil {
		return nil, err
	}
	p := append(make([]byte, 0, HeaderBytes), magic...)
	p = append(p, version, byte(h.Kind))
	for _, d := range []digest.Digest{h.Base, h.Target} {
		sum, err := hex.DecodeString(d.Encoded())
		if err != nil {
			return nil, fmt.Errorf("digest %q: %w", d, err)
		}
		p = append(p, sum...)
	}
	p = binary.LittleEndian.AppendUint64(p, uint64(h.BaseBytes))
	return binary.LittleEndian.AppendUint64(p, uint64(h.TargetBytes)), nil
}

// ReadHeader reads the first HeaderBytes of a delta and checks them.
func ReadHeader(r io.Reader) (Header, error) {
	var p [HeaderBytes]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return Header{}, fmt.Errorf("header of a delta: %w", cut(err))
	}
	if string(p[:len(magic)]) != magic {
		return Header{}, fmt.Errorf("header of a delta: it begins with %q: %w", p[:len(magic)], ErrInvalid)
	}
	b := p[len(magic):]
	if b[0] != version {
		return Header{}, fmt.Errorf("delta of version %d; this version of seeder knows %d: %w", b[0], version, ErrInvalid)
	}
	h := Header{
		Kind:        Kind(b[1]),
		Base:        digest.NewDigestFromBytes(digest.SHA256, b[2:34]),
		Target:      digest.NewDigestFromBytes(digest.SHA256, b[34:66]),
		BaseBytes:   int64(binary.LittleEndian.Uint64(b[66:])),
		TargetBytes: int64(binary.LittleEndian.Uint64(b[74:])),
	}
	if err := h.validate(); err != nil {
		return Header{}, fmt.Errorf("header of a delta: %w: %w", err, ErrInvalid)
	}
	return h, nil
}

// cut names the end of a delta that comes too soon.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the delta ends too soon: %w", ErrInvalid)
	}
	return err
}
