package offers

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"hash/fnv"
	"io"
	"slices"
)

const (
	// sketchRead is how much of a layer, unpacked, is looked at: 0.04 s of one core for gzip.
	sketchRead = 8 << 20
	// sketchHead is how much of each file counts.
	sketchHead = 4 << 10
	// sketchSize is how many hashes are kept: two layers that share a share s of their
	// files differ from s by about 1/√512 = 4 %.
	sketchSize = 512
)

// sketch is what a layer looks like: the lowest hashes (bottom-k, Broder 1997) of the names
// of its files, and of the beginnings of their contents. Where a file is in the layer, and
// who compressed it, makes no difference. It is sorted. Empty: it is not a tar.
type sketch []uint64

// sketchOf reads the beginning of a layer, plain or gzip. What cannot be read ends it.
func sketchOf(r io.Reader) sketch {
	buffered := bufio.NewReader(r)
	var unpacked io.Reader = buffered
	if head, err := buffered.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil
		}
		defer z.Close()
		unpacked = z
	}
	var all sketch
	head := make([]byte, sketchHead)
	for t := tar.NewReader(io.LimitReader(unpacked, sketchRead)); ; {
		h, err := t.Next()
		if err != nil {
			break
		}
		all = append(all, hashOf("name", []byte(h.Name)))
		if n, _ := io.ReadFull(t, head); n > 0 {
			all = append(all, hashOf("data", head[:n]))
		}
		if len(all) > 16*sketchSize {
			all = all.lowest()
		}
	}
	return all.lowest()
}

func hashOf(kind string, p []byte) uint64 {
	h := fnv.New64a()
	io.WriteString(h, kind)
	h.Write(p)
	// FNV leaves the high bits of short texts alike; this spreads them (murmur3's end).
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// lowest keeps the lowest hashes, each once.
func (s sketch) lowest() sketch {
	slices.Sort(s)
	s = slices.Compact(s)
	return s[:min(len(s), sketchSize)]
}

// likeness is the estimated share of what either has that both have, 0 to 1.
func (s sketch) likeness(other sketch) float64 {
	union, both, i, j := 0, 0, 0, 0
	for most := max(len(s), len(other)); union < most && i < len(s) && j < len(other); union++ {
		switch {
		case s[i] == other[j]:
			both++
			i++
			j++
		case s[i] < other[j]:
			i++
		default:
			j++
		}
	}
	if union == 0 {
		return 0
	}
	return float64(both) / float64(union)
}
