package stage

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"

	"seeder/store/chunk"
)

// A record is a header and a payload. The header is the magic "SDfr", the chunk's
// number in the blob (u32), the encoding (u8), three zero bytes, the length of
// the payload (u32) and the CRC-32C of all that and the payload (u32); numbers
// are big-endian. A payload is no longer than its chunk.
const headerBytes = 20

var (
	magic      = []byte("SDfr")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errNoRecord = errors.New("not a record of frames")
)

type header struct {
	chunk  int
	enc    chunk.Encoding
	length uint32
	crc    uint32
	sealed [16]byte // what the CRC covers besides the payload
}

func newHeader(n int, enc chunk.Encoding, payload []byte) header {
	h := header{chunk: n, enc: enc, length: uint32(len(payload))}
	copy(h.sealed[:], magic)
	binary.BigEndian.PutUint32(h.sealed[4:], uint32(n))
	h.sealed[8] = byte(enc)
	binary.BigEndian.PutUint32(h.sealed[12:], h.length)
	h.crc = h.sum(payload)
	return h
}

func (h header) sum(payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(h.sealed[:], castagnoli), castagnoli, payload)
}

func (h header) append(dst []byte) []byte {
	return binary.BigEndian.AppendUint32(append(dst, h.sealed[:]...), h.crc)
}

// readHeader reads the header of a record of the blob at off.
func readHeader(f *os.File, off int64, info chunk.Blob) (header, error) {
	var p [headerBytes]byte
	if _, err := f.ReadAt(p[:], off); err != nil {
		return header{}, err
	}
	h := header{
		chunk: int(binary.BigEndian.Uint32(p[4:])), enc: chunk.Encoding(p[8]),
		length: binary.BigEndian.Uint32(p[12:]), crc: binary.BigEndian.Uint32(p[16:]),
	}
	copy(h.sealed[:], p[:])
	if string(p[:4]) != string(magic) || h.chunk >= len(info.Sums) || int64(h.length) > info.ChunkBytes {
		return header{}, errNoRecord
	}
	return h, nil
}
