package delta

import (
	"encoding/binary"
	"fmt"
	"io"
)

// bitReader reads bits of a file, least significant first.
type bitReader struct {
	r    io.ReaderAt
	size int64
	buf  []byte // at least 8 bytes are left in it after more
	off  int64  // of buf in the file
	pos  int    // of the next byte in buf
	acc  uint64
	n    uint // valid bits of acc
}

const bitBuffer = 64 << 10

// at is the position in bits.
func (b *bitReader) at() int64 { return (b.off+int64(b.pos))*8 - int64(b.n) }

// seek goes to a bit.
func (b *bitReader) seek(bit int64) error {
	b.off, b.pos, b.acc, b.n = bit/8, 0, 0, 0
	b.buf = b.buf[:0]
	if err := b.refill(); err != nil {
		return err
	}
	b.drop(uint(bit % 8))
	return nil
}

func (b *bitReader) drop(k uint) { b.acc >>= k; b.n -= k }

// refill makes at least 56 bits valid; behind the file they are 0.
func (b *bitReader) refill() error {
	if b.pos+8 > len(b.buf) {
		if err := b.more(); err != nil {
			return err
		}
	}
	b.acc |= binary.LittleEndian.Uint64(b.buf[b.pos:]) << b.n
	b.pos += int(63-b.n) >> 3
	b.n |= 56
	return nil
}

// more reads on. It keeps the 8 bytes before pos, which acc may have.
func (b *bitReader) more() error {
	if b.at() > b.size*8 {
		return fmt.Errorf("it ends within a block: %w", ErrRefused)
	}
	keep := max(b.pos-8, 0)
	if b.buf == nil {
		b.buf = make([]byte, 0, bitBuffer)
	}
	n := copy(b.buf[:cap(b.buf)], b.buf[keep:])
	b.off, b.pos = b.off+int64(keep), b.pos-keep
	b.buf = b.buf[:cap(b.buf)]
	from := b.off + int64(n)
	want := int(max(0, min(int64(len(b.buf)-n), b.size-from)))
	if err := readAt(b.r, b.buf[n:n+want], from); err != nil {
		return err
	}
	if n+want < b.pos+8 || from+int64(want) >= b.size { // the end: zeros behind it
		clear(b.buf[n+want:])
		b.buf = b.buf[:min(n+want+16, cap(b.buf))]
	}
	return nil
}

// take reads up to 32 bits.
func (b *bitReader) take(k uint) (uint32, error) {
	if b.n < k {
		if err := b.refill(); err != nil {
			return 0, err
		}
	}
	v := uint32(b.acc & (1<<k - 1))
	b.drop(k)
	return v, nil
}

// ahead is what the buffer has of the file from a byte boundary on.
func (b *bitReader) ahead() []byte {
	b.pos -= int(b.n / 8)
	b.acc, b.n = 0, 0
	return b.buf[b.pos:max(b.pos, int(min(int64(len(b.buf)), b.size-b.off)))]
}

// copy appends n bytes from a byte boundary, through the buffer.
func (b *bitReader) copy(out []byte, n int) ([]byte, error) {
	for n > 0 {
		have := b.ahead()
		if len(have) == 0 {
			if b.off+int64(b.pos) >= b.size {
				return out, fmt.Errorf("it ends within a stored block: %w", ErrRefused)
			}
			if err := b.more(); err != nil {
				return out, err
			}
			continue
		}
		have = have[:min(n, len(have))]
		out = append(out, have...)
		b.pos, n = b.pos+len(have), n-len(have)
	}
	return out, nil
}

// raw is copy of what is no block.
func (b *bitReader) raw(out []byte, n int) ([]byte, error) {
	if left := b.size - b.at()/8; int64(n) > left {
		return out, fmt.Errorf("it ends %d bytes too soon: %w", int64(n)-left, ErrRefused)
	}
	return b.copy(out, n)
}

// bitWriter writes bits.
type bitWriter struct {
	w   io.Writer
	buf []byte // bitBuffer and 16 more
	k   int
	acc uint64
	n   uint // below 8 between calls of put
}

// put writes k bits, at most 48.
func (b *bitWriter) put(v uint64, k uint) {
	b.acc |= v << b.n
	b.n += k
	binary.LittleEndian.PutUint64(b.buf[b.k:], b.acc)
	b.k += int(b.n >> 3)
	b.acc >>= b.n &^ 7
	b.n &= 7
}

// maxBytes is the longest run of literals.
const maxBytes = 128

// bytes writes at most maxBytes of them at a byte boundary.
func (b *bitWriter) bytes(p []byte) { b.k += copy(b.buf[b.k:], p) }

// room writes out what is there once it is much; call it at least every 48 KiB.
func (b *bitWriter) room(all bool) error {
	if b.k < bitBuffer/4 && !all {
		return nil
	}
	_, err := b.w.Write(b.buf[:b.k])
	b.k = 0
	return err
}

// raw writes bytes at a byte boundary.
func (b *bitWriter) raw(p []byte) error {
	if len(p) <= maxBytes { // a file may have headers and trailers each few bytes
		b.bytes(p)
		return nil
	}
	if err := b.room(true); err != nil {
		return err
	}
	_, err := b.w.Write(p)
	return err
}
