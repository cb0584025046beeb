package delta

import (
	"encoding/binary"
	"math/bits"
)

const (
	seedBytes   = 16
	minSeedStep = 8
	// maxSeeds bounds the table of a stream: 6 bytes each, 12 MiB. Its step is 8 up to 12 MB
	// of stream, 128 at 200 MB, 2,048 at 3 GB.
	maxSeeds = 2 << 20
)

// seeds says where in an old stream a sequence of seedBytes was first seen, at each multiple
// of step. A stream that has more places than the table doubles the step.
type seeds struct {
	place []uint32 // offset/minSeedStep + 1; 0: none
	tag   []uint16 // more of the hash: a wrong place costs a page
	shift uint
	step  int64
	tried int
}

// newSeeds sizes the table for a stream of about that many bytes.
func newSeeds(bytes int64, most int) *seeds {
	want := min(max(bytes/minSeedStep*2, 1<<8), int64(most))
	b := uint(bits.Len64(uint64(want - 1)))
	return &seeds{place: make([]uint32, 1<<b), tag: make([]uint16, 1<<b), shift: 64 - b, step: minSeedStep}
}

// hash is that of the first seedBytes of p.
func seedHash(p []byte) uint64 {
	x := binary.LittleEndian.Uint64(p)*0x9E3779B97F4A7C15 ^ bits.RotateLeft64(binary.LittleEndian.Uint64(p[8:])*0xC2B2AE3D27D4EB4F, 31)
	x *= 0x9E3779B97F4A7C15
	return x ^ x>>29
}

// slotOf splits a hash.
func (t *seeds) slotOf(h uint64) (int, uint16) {
	return int((h * 0x9E3779B97F4A7C15) >> t.shift), uint16(h)
}

// add enters the seeds of p, which begins at offset at.
func (t *seeds) add(p []byte, at int64) {
	i := (at+t.step-1)/t.step*t.step - at
	for ; i+seedBytes <= int64(len(p)); i += t.step {
		if t.tried >= len(t.place)*3/4 {
			t.thin()
			i = (at+i+t.step-1)/t.step*t.step - at
			if i+seedBytes > int64(len(p)) {
				return
			}
		}
		t.tried++
		s, tag := t.slotOf(seedHash(p[i:]))
		if t.place[s] == 0 {
			t.place[s], t.tag[s] = uint32((at+i)/minSeedStep)+1, tag
		}
	}
}

// thin doubles the step and drops what is between.
func (t *seeds) thin() {
	t.step *= 2
	for i, p := range t.place {
		if p != 0 && int64(p-1)*minSeedStep%t.step != 0 {
			t.place[i] = 0
		}
	}
	t.tried /= 2
}

// find is where the first seedBytes of p may lie in the stream, or -1.
func (t *seeds) find(p []byte) int64 {
	s, tag := t.slotOf(seedHash(p))
	if t.tag[s] != tag || t.place[s] == 0 {
		return -1
	}
	return int64(t.place[s]-1) * minSeedStep
}
