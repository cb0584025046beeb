package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Encoding says how the payload of a frame is to be read. The numbers are on the
// wire and on disk.
type Encoding uint8

// The encodings of frames.
const (
	Raw  Encoding = 0
	Zstd Encoding = 1
)

// Frame is a chunk on its way out. The reader of it closes Payload.
type Frame struct {
	Encoding Encoding
	Bytes    int64 // length of Payload
	Payload  io.ReadCloser
}

// Codec turns chunks into frames and back. It is safe for concurrent use.
type Codec struct {
	encoders [2]sync.Pool // by Effort
	decoders sync.Pool
}

// Effort is how much time a frame may cost.
type Effort int

// The efforts. Measured on a layer of programs in chunks of 1 MiB, MB per
// CPU-second and how much it shrinks: Fast 271 and 2.75, Thorough 180 and 2.92.
const (
	Fast     Effort = iota // somebody waits for the frame
	Thorough               // it is made ahead of demand
)

// NewCodec returns a codec. Its encoders and decoders are made when needed and
// reused: a new decoder for each chunk costs 5 to 25 %.
func NewCodec() *Codec { return &Codec{} }

// Compressible says from the media type and the first bytes whether it is worth
// trying to compress a blob: what is gzip, zstd, xz or bzip2 already is not.
func Compressible(mediaType string, head []byte) bool {
	for _, suffix := range []string{"+gzip", ".gzip", "+zstd", "+encrypted"} {
		if strings.HasSuffix(mediaType, suffix) {
			return false
		}
	}
	for _, magic := range [][]byte{{0x1f, 0x8b}, {0x28, 0xb5, 0x2f, 0xfd}, {0xfd, '7', 'z', 'X', 'Z', 0}, []byte("BZh")} {
		if bytes.HasPrefix(head, magic) {
			return false
		}
	}
	return true
}

const (
	// trialBytes from the middle of a chunk tell whether it shrinks: 275 µs on a
	// tar against 3 ms for the whole chunk in vain.
	trialBytes = 64 << 10
	// worth is the least that a frame has to save, 1/16: less is not worth the
	// decoding.
	worth = 16
)

// Encode makes a frame of raw: the payload is appended to dst[:0], or raw itself
// where compressing it is not worth it. likely says that it will shrink, as the chunk
// before it did: then a part of it is not tried first. Decode accepts every frame that Encode makes:
// what its checks refuse travels raw.
func (c *Codec) Encode(dst, raw []byte, effort Effort, likely bool) (Encoding, []byte, error) {
	enc, err := c.encoder(effort)
	if err != nil {
		return 0, nil, err
	}
	defer c.encoders[effort].Put(enc)
	if !likely && len(raw) >= MinBytes {
		mid := (len(raw) - trialBytes) / 2
		dst = enc.EncodeAll(raw[mid:mid+trialBytes], dst[:0])
		if len(dst) > trialBytes-trialBytes/worth {
			return Raw, raw, nil
		}
	}
	dst = enc.EncodeAll(raw, dst[:0])
	if len(dst) > len(raw)-len(raw)/worth || checkZstd(dst, len(raw)) != nil {
		return Raw, raw, nil
	}
	return Zstd, dst, nil
}

// ErrFrame says that a payload is not a frame of the chunk: anyone who sent it is
// at fault.
var ErrFrame = errors.New("not a frame of this chunk")

// Decode returns the chunk of rawBytes bytes that a frame stands for, in dst's
// memory (or the payload itself for raw frames). It allocates no more than the
// chunk, whatever the payload says, and takes time in proportion to it. A payload is
// never longer than its chunk: it would travel raw then.
func (c *Codec) Decode(dst []byte, enc Encoding, payload []byte, rawBytes int) ([]byte, error) {
	if len(payload) > rawBytes || rawBytes > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes for %d", ErrFrame, len(payload), rawBytes)
	}
	switch enc {
	case Raw:
		if len(payload) != rawBytes {
			return nil, fmt.Errorf("%w: %d raw bytes, want %d", ErrFrame, len(payload), rawBytes)
		}
		return payload, nil
	case Zstd:
		return c.inflate(dst, payload, rawBytes)
	}
	return nil, fmt.Errorf("%w: unknown encoding %d", ErrFrame, enc)
}

// checkZstd checks from its headers that a payload is one zstd frame that says of
// itself that it holds rawBytes bytes.
func checkZstd(payload []byte, rawBytes int) error {
	var h zstd.Header
	if err := h.Decode(payload); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("%w: it is a skippable frame", ErrFrame)
	case !h.HasFCS:
		return fmt.Errorf("%w: it does not say how many bytes it holds", ErrFrame)
	case h.FrameContentSize != uint64(rawBytes):
		return fmt.Errorf("%w: it says that it holds %d bytes, want %d", ErrFrame, h.FrameContentSize, rawBytes)
	case !single(payload, h):
		return fmt.Errorf("%w: it does not end where its last block does, or has too many of them", ErrFrame)
	}
	return nil
}

func (c *Codec) inflate(dst, payload []byte, rawBytes int) ([]byte, error) {
	if err := checkZstd(payload, rawBytes); err != nil {
		return nil, err
	}
	dec, err := c.decoder()
	if err != nil {
		return nil, err
	}
	defer c.decoders.Put(dec)
	if cap(dst) < rawBytes {
		dst = make([]byte, 0, rawBytes)
	}
	out, err := dec.DecodeAll(payload, dst[:0:rawBytes])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if len(out) != rawBytes {
		return nil, fmt.Errorf("%w: %d bytes came out, want %d", ErrFrame, len(out), rawBytes)
	}
	return out, nil
}

// minBlock is what a block of a frame stands for at least, on average; encoders cut
// 128 KiB. Each may bring its own tables, which take longer than its bytes.
const minBlock = 1 << 10

// single reports whether p is exactly one zstd frame: blocks of a three-byte
// header (last 1 bit, type 2 bits, size 21 bits; RFC 8878, section 3.1.1.2),
// not too many, then the checksum if there is one.
func single(p []byte, h zstd.Header) bool {
	left := h.FrameContentSize/minBlock + 2
	for off := h.HeaderSize; off+3 <= len(p) && left > 0; left-- {
		block := uint32(p[off]) | uint32(p[off+1])<<8 | uint32(p[off+2])<<16
		size := int(block >> 3)
		if block>>1&3 == 1 { // run length: one byte stands for size of them
			size = 1
		}
		off += 3 + size
		if block&1 == 1 {
			if h.HasCheckSum {
				off += 4
			}
			return off == len(p)
		}
	}
	return false
}

func (c *Codec) encoder(effort Effort) (*zstd.Encoder, error) {
	if e, ok := c.encoders[effort].Get().(*zstd.Encoder); ok {
		return e, nil
	}
	level := zstd.SpeedFastest
	if effort == Thorough {
		level = zstd.SpeedDefault
	}
	// Only a frame of a single segment always says how long its content is: otherwise
	// the field is absent for less than 256 bytes (RFC 8878, section 3.1.1.1.1).
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(level), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(MaxBytes), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false)) // chunks have a SHA-256
	if err != nil {
		return nil, fmt.Errorf("make a zstd encoder: %w", err)
	}
	return e, nil
}

func (c *Codec) decoder() (*zstd.Decoder, error) {
	if d, ok := c.decoders.Get().(*zstd.Decoder); ok {
		return d, nil
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBytes),
		zstd.WithDecoderMaxWindow(MaxBytes), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("make a zstd decoder: %w", err)
	}
	return d, nil
}
