package ui

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"maps"
	"slices"
	"testing"
)

// withPalette is a picture with the 256 colours that it has most of: half the bytes.
func withPalette(t *testing.T, b []byte) []byte {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	box, counts := img.Bounds(), map[color.Color]int{}
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			counts[img.At(x, y)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int { return counts[b] - counts[a] })
	out := image.NewPaletted(box, colours[:min(len(colours), 256)])
	nearest := make(map[color.Color]uint8, len(colours))
	for _, c := range colours {
		nearest[c] = uint8(out.Palette.Index(c))
	}
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			out.SetColorIndex(x, y, nearest[img.At(x, y)])
		}
	}
	var buf bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&buf, out); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
