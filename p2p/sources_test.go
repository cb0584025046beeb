package p2p_test

import (
	"slices"
	"testing"

	"seeder/p2p/report"
)

// Every node says where its bytes came from, to the last one, and what it sent is
// what others say they have got.
func TestNodesSayWhereBytesCameFrom(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 4)
	image := blob(1, 3<<20)
	const had = 1 << 20
	nodes[2].store.Add("docker.io/library/other:latest", image[:had], 256<<10) // shares its chunks
	announce(t, nodes[0], nodes[0].store.Add(testRef, image, 256<<10))
	var row report.ImageState
	nodes[3].waitFor(t, "ready on 4 nodes, all sent bytes told", func() bool {
		imgs, err := nodes[3].Images(t.Context(), testRef)
		if err != nil || imgs.Images[0].Ready < 4 {
			return false
		}
		row = imgs.Images[0]
		var sent, got int64
		for _, n := range row.Nodes {
			sent += n.SentBytes
			for _, s := range n.Sources {
				if s.Name != report.LocalSource {
					got += s.Bytes
				}
			}
		}
		return sent >= got // the sender counts a chunk a moment after its receiver
	})
	for _, n := range row.Nodes {
		local, sum := int64(0), int64(0)
		for _, s := range n.Sources {
			sum += s.Bytes
			switch {
			case s.Name == report.LocalSource:
				local = s.Bytes
			case !slices.Contains([]string{"n0", "n1", "n2", "n3"}, s.Name), s.Name == n.Name:
				t.Errorf("%s got bytes from %s", n.Name, s.Name)
			}
		}
		wantLocal, want := int64(0), int64(len(image))
		switch n.Name {
		case "n0":
			want = 0 // it had the image, and fetched nothing
		case "n2":
			wantLocal = had
		}
		if sum != want || local != wantLocal || n.WireBytes < want-local || n.RateBytesPerSecond != 0 {
			t.Errorf("%+v: sources sum to %d, want %d; local %d, want %d", n, sum, want, local, wantLocal)
		}
	}
}
