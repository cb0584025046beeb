package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// A have stream is a sequence of messages: kind (1 byte), length (uvarint),
// body. The first one is the full map; unknown kinds are passed over, so that a
// later version may say more.
const (
	haveMap       = 1 // body: chunk.Bitmap as AppendBinary writes it
	haveNew       = 2 // body: chunk numbers, ascending; the first as it is, then differences (uvarints)
	haveComplete  = 3 // no body: every chunk is held
	haveKeepAlive = 4 // no body, every 5 s

	// maxHaveBytes bounds a body: a map of MaxChunks has 8 KiB, a list of as many
	// new chunks at most 3 bytes for each.
	maxHaveBytes = 3 * chunk.MaxChunks
)

func uvarint(b []byte) (uint64, int) { return binary.Uvarint(b) }

// appendHaves writes h for a swarm of n chunks.
func appendHaves(dst []byte, h swarm.Haves, n int) []byte {
	if h.Map != nil {
		dst = appendMessage(dst, haveMap, h.Map.AppendBinary(nil, n))
	}
	if len(h.New) > 0 {
		dst = appendMessage(dst, haveNew, encodeNew(h.New, n))
	}
	if h.Complete {
		dst = appendMessage(dst, haveComplete, nil)
	}
	return dst
}

func appendMessage(dst []byte, kind byte, body []byte) []byte {
	dst = append(dst, kind)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

// encodeNew sorts the numbers by way of a bitmap.
func encodeNew(chunks []int, n int) []byte {
	set := chunk.NewBitmap(n)
	for _, c := range chunks {
		set.Set(c)
	}
	var b []byte
	last := 0
	for c := range n {
		if set.Has(c) {
			b = binary.AppendUvarint(b, uint64(c-last))
			last = c
		}
	}
	return b
}

// decodeNew reads chunk numbers below n, ascending.
func decodeNew(b []byte, n int) ([]int, error) {
	var out []int
	last := 0
	for len(b) > 0 {
		d, k := binary.Uvarint(b)
		if k <= 0 || d >= uint64(n) || (len(out) > 0 && d == 0) || last+int(d) >= n {
			return nil, errors.New("have message: wrong chunk number")
		}
		last += int(d)
		out = append(out, last)
		b = b[k:]
	}
	return out, nil
}

// readHaves reads the next message for a swarm of n chunks. ok is false for a
// message that says nothing about chunks.
func readHaves(r *bufio.Reader, n int) (h swarm.Haves, ok bool, err error) {
	kind, err := r.ReadByte()
	if err != nil {
		return h, false, err
	}
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return h, false, unexpected(err)
	}
	if size > maxHaveBytes {
		return h, false, fmt.Errorf("have message of %d bytes, at most %d", size, maxHaveBytes)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, false, unexpected(err)
	}
	switch kind {
	case haveMap:
		h.Map, err = chunk.ParseBitmap(body, n)
	case haveNew:
		h.New, err = decodeNew(body, n)
	case haveComplete:
		h.Complete = true
	default:
		return h, false, nil
	}
	return h, err == nil, err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
