package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// TestImportsWhileChunksArrive: a layer is in the content store as soon as its last
// chunk is here, whatever those after it lack, and of those the part that is here has
// been written.
func TestImportsWhileChunksArrive(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20), layer(t, "app", 1<<20))
	b := open(t, t.TempDir())
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	imported := make(chan error, 1)
	go func() { imported <- to.Import(t.Context(), full) }()
	top := len(to.blobs) - 1
	last := to.blobs[top].info.Digest
	n := 0
	for ; n < to.Len()-1; n++ {
		move(t, from, to, n)
	}
	until(t, func() bool { return slices.Equal(to.Missing(), []digest.Digest{last}) })
	until(t, func() bool { // the import waits for the one chunk that is not here
		to.blobs[top].near.mu.Lock()
		defer to.blobs[top].near.mu.Unlock()
		return to.blobs[top].near.chunks != nil && to.blobs[top].near.next == len(to.blobs[top].info.Sums)-1
	})
	move(t, from, to, n)
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestImportNeedsNoPeerForWhatIsHere: what somebody imports by hand after a fetch began is
// not waited for, blobs of one chunk included.
func TestImportNeedsNoPeerForWhatIsHere(t *testing.T) {
	t.Parallel()
	layers := [][]byte{layer(t, "base", 1<<10), layer(t, "app", 1<<20)}
	_, p := announceSide(t, layers...)
	b := open(t, t.TempDir())
	to := image(t, b, p.Index)
	if _, err := b.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, "by-hand:1", layers...)), ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := to.Import(ctx, full); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestFramesAreRelayedAsTheyCame: what a peer sent is given on to the byte, before and
// after the import, though this host would have made another frame of it.
func TestFramesAreRelayedAsTheyCame(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20))
	from, to := image(t, a, p.Index), image(t, open(t, t.TempDir()), p.Index)
	other, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	sent := map[int][]byte{}
	for n := range from.Len() {
		k, at := from.index.Locate(n)
		if from.blobs[k].info.ChunkLen(at) < chunk.MinBytes {
			move(t, from, to, n)
			continue
		}
		raw := make([]byte, from.Bytes(n))
		ra, err := from.blobs[k].reader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ra.ReadAt(raw, int64(at)*from.blobs[k].info.ChunkBytes); err != nil {
			t.Fatal(err)
		}
		ra.Close()
		sent[n] = other.EncodeAll(raw, nil)
		if ok, err := to.Put(t.Context(), n, chunk.Zstd, sent[n]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	relayed := func(when string) {
		t.Helper()
		for n, want := range sent {
			enc, _, r, err := opened(to.Frame(t.Context(), n))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if r.Close(); err != nil || enc != chunk.Zstd || !bytes.Equal(got, want) {
				t.Errorf("%s the import chunk %d goes out as another frame of %d bytes, %v; %d came", when, n, len(got), err, len(want))
			}
		}
	}
	relayed("before")
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	relayed("after")
	if len(sent) == 0 {
		t.Error("no chunk was large enough")
	}
}

// TestTrialIsSkipped: a chunk whose middle does not shrink is compressed where the one
// before it shrank, since it is not tried first.
func TestTrialIsSkipped(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("it shrinks "), 3*chunk.MinBytes/11)
	rand.Read(content[chunk.MinBytes+chunk.MinBytes/4 : chunk.MinBytes+3*chunk.MinBytes/4])
	for _, c := range []struct {
		ask  []int
		want chunk.Encoding
	}{{[]int{1}, chunk.Raw}, {[]int{0, 1}, chunk.Zstd}} {
		a, p := announceSide(t, tarOf(t, entry{"half", content}))
		img := image(t, a, p.Index)
		first := img.Len() - len(img.blobs[len(img.blobs)-1].info.Sums)
		var enc chunk.Encoding
		for _, at := range c.ask {
			var r io.ReadCloser
			var err error
			if enc, _, r, err = opened(img.Frame(t.Context(), first+at)); err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
		if enc != c.want {
			t.Errorf("chunks %v asked for: the last one has encoding %d, want %d", c.ask, enc, c.want)
		}
	}
}
