package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	// segmentBytes is how much of the target a segment has; maxPart bounds what Decode accepts of a segment, and each of its three pieces.
	segmentBytes = 2 << 20
	maxPart      = 4 << 20
)

// newZstdWriter is the compressor of one encoder.
func newZstdWriter() (*zstd.Encoder, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(4<<20), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return w, nil
}

// appendPart encodes a segment: its length; where that is not 0 the lengths of
// ctrl, diff and extra as they are and as they follow. A diff of nothing but zeros follows as
// nothing.
func appendPart(out []byte, z *zstd.Encoder, p *part, packed *[]byte) []byte {
	out = binary.AppendUvarint(out, uint64(p.bytes))
	if p.bytes == 0 {
		return out
	}
	for i, piece := range [][]byte{p.ctrl, p.diff, p.extra} {
		*packed = (*packed)[:0]
		if len(piece) > 0 && (i != 1 || !zeros(piece)) {
			*packed = z.EncodeAll(piece, *packed)
		}
		out = binary.AppendUvarint(out, uint64(len(piece)))
		out = binary.AppendUvarint(out, uint64(len(*packed)))
		out = append(out, *packed...)
	}
	return out
}

func zeros(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// decoder makes the target from segments.
type decoder struct {
	h       Header
	old     []spans // of each stream
	sink    *sink
	zstd    *zstd.Decoder
	next    [2]int64 // where in the old stream the last copy ended
	part    part
	packed  []byte
	made    [2][]byte // the streams of this segment
	recoder *recoder  // kind Deflate
}

func newDecoder(h Header, old []spans, w io.Writer) *decoder {
	d := &decoder{h: h, old: old, sink: newSink(w, h.TargetBytes)}
	if h.Kind == Deflate {
		d.recoder = newRecoder(d.sink)
	}
	return d
}

func (d *decoder) close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}

// segment reads one segment and writes what it makes. more is false when it was the mark of
// the end.
func (d *decoder) segment(r io.Reader) (more bool, err error) {
	br := byteReader{r: r}
	for s := range d.old {
		if err := d.readPart(&br, s); err != nil {
			return false, err
		}
		more = more || len(d.made[s]) > 0
	}
	if !more {
		return false, nil
	}
	if d.recoder != nil {
		return true, d.recoder.segment(d.made[0], d.made[1])
	}
	_, err = d.sink.Write(d.made[0])
	return true, err
}

// finish checks that the target is complete.
func (d *decoder) finish() error {
	if d.recoder != nil {
		if err := d.recoder.finish(); err != nil {
			return err
		}
	}
	return d.sink.check(d.h.Target)
}

// readPart reads one stream of a segment into d.made[s].
func (d *decoder) readPart(r *byteReader, s int) error {
	n, err := r.length("stream", maxPart)
	d.made[s] = d.made[s][:0]
	if err != nil || n == 0 {
		return err
	}
	d.made[s] = empty(d.made[s], n)
	p := &d.part
	p.bytes = n
	for _, piece := range []struct {
		name string
		to   *[]byte
	}{{"ctrl", &p.ctrl}, {"diff", &p.diff}, {"extra", &p.extra}} {
		if err := d.readPiece(r, piece.name, piece.to); err != nil {
			return err
		}
	}
	if len(p.diff)+len(p.extra) != n {
		return fmt.Errorf("a stream of %d bytes from %d and %d: %w", n, len(p.diff), len(p.extra), ErrInvalid)
	}
	return d.apply(s)
}

// readPiece reads ctrl, diff or extra: never more than maxPart, as read or as unpacked.
func (d *decoder) readPiece(r *byteReader, name string, to *[]byte) error {
	raw, err := r.length(name, maxPart)
	if err != nil {
		return err
	}
	packed, err := r.length(name+" as packed", maxPart+maxPart/128)
	if err != nil {
		return err
	}
	if packed == 0 {
		if raw > 0 && name != "diff" {
			return fmt.Errorf("%s of %d bytes is missing: %w", name, raw, ErrInvalid)
		}
		*to = grow(*to, raw)
		clear(*to)
		return nil
	}
	d.packed = grow(d.packed, packed)
	if _, err := io.ReadFull(r.r, d.packed); err != nil {
		return fmt.Errorf("read %s: %w", name, cut(err))
	}
	if d.zstd == nil {
		if d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(8<<20), zstd.WithDecodeAllCapLimit(true)); err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
	}
	*to = grow(*to, raw)
	out, err := d.zstd.DecodeAll(d.packed, (*to)[:0:raw])
	if err != nil || len(out) != raw {
		return fmt.Errorf("unpack %s: %d bytes of %d (%v): %w", name, len(out), raw, err, ErrInvalid)
	}
	return nil // out is *to, whose capacity it does not have
}

// apply makes stream s of this segment from d.part and the old stream.
func (d *decoder) apply(s int) error {
	p := d.part
	for n := p.bytes; n > 0; {
		extra, err := takeLength(&p.ctrl, min(n, len(p.extra)))
		if err != nil {
			return err
		}
		d.made[s] = append(d.made[s], p.extra[:extra]...)
		p.extra = p.extra[extra:]
		if n -= extra; n == 0 {
			break
		}
		copied, err := takeLength(&p.ctrl, min(n, len(p.diff)))
		if err != nil {
			return err
		}
		jump, k := binary.Varint(p.ctrl)
		if k <= 0 || extra+copied == 0 {
			return fmt.Errorf("a step that does nothing, or none: %w", ErrInvalid)
		}
		p.ctrl = p.ctrl[k:]
		if err := d.copy(s, p.diff[:copied], jump); err != nil {
			return err
		}
		p.diff = p.diff[copied:]
		n -= copied
	}
	if len(p.ctrl) > 0 {
		return fmt.Errorf("%d bytes of steps too many: %w", len(p.ctrl), ErrInvalid)
	}
	return nil
}

// copy appends the old bytes that lie jump behind where the last copy ended, plus diff.
func (d *decoder) copy(s int, diff []byte, jump int64) error {
	if jump > maxBlobBytes*8 || jump < -maxBlobBytes*8 {
		return fmt.Errorf("a jump of %d bytes: %w", jump, ErrInvalid)
	}
	off := d.next[s] + jump
	for len(diff) > 0 {
		b, start, err := d.old[s].span(off)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("offset %d of the base, which has none: %w", off, ErrInvalid)
		}
		if err != nil {
			return err
		}
		b = b[off-start:]
		n := min(len(b), len(diff))
		at := len(d.made[s])
		d.made[s] = append(d.made[s], diff[:n]...)
		add(d.made[s][at:], b[:n])
		diff, off = diff[n:], off+int64(n)
	}
	d.next[s] = off
	return nil
}

// takeLength reads a length of at most limit from the front of p.
func takeLength(p *[]byte, limit int) (int, error) {
	v, k := binary.Uvarint(*p)
	if k <= 0 || v > uint64(limit) {
		return 0, fmt.Errorf("a length of %d where at most %d are left: %w", v, limit, ErrInvalid)
	}
	*p = (*p)[k:]
	return int(v), nil
}

// grow returns n bytes, in p where they fit.
func grow(p []byte, n int) []byte {
	if cap(p) < n {
		return make([]byte, n)
	}
	return p[:n]
}

// empty is p without its bytes, with room for n: what grows to that step by step leaves several
// times as much behind. Room that is not written to takes no memory.
func empty(p []byte, n int) []byte {
	if cap(p) < n {
		return make([]byte, 0, n)
	}
	return p[:0]
}

// byteReader reads lengths without reading beyond them.
type byteReader struct {
	r   io.Reader
	one [1]byte
	err error // of r
}

// ReadByte implements io.ByteReader.
func (b *byteReader) ReadByte() (byte, error) {
	_, b.err = io.ReadFull(b.r, b.one[:])
	return b.one[0], b.err
}

func (b *byteReader) length(name string, limit int) (int, error) {
	v, err := binary.ReadUvarint(b)
	if err != nil && b.err == nil { // more bytes than a length has
		return 0, fmt.Errorf("length of a %s: %w: %w", name, err, ErrInvalid)
	}
	if err != nil {
		return 0, fmt.Errorf("length of a %s: %w", name, cut(err))
	}
	if v > uint64(limit) {
		return 0, fmt.Errorf("a %s of %d bytes, at most %d: %w", name, v, limit, ErrInvalid)
	}
	return int(v), nil
}
