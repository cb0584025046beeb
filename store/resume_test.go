package store

import (
	"context"
	"errors"
	"os"
	"testing"

	"seeder/store/artifact"
)

func TestResumesAfterACrash(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 2<<20))
	from := image(t, a, p.Index)
	dir := t.TempDir()
	b := open(t, dir)
	to := image(t, b, p.Index)
	ctx, cancel := context.WithCancel(t.Context())
	imported := make(chan error, 1)
	go func() { imported <- to.Import(ctx, full) }()
	half := to.Len() / 2
	for n := range half {
		move(t, from, to, n)
	}
	cancel()
	if err := <-imported; !errors.Is(err, context.Canceled) {
		t.Fatalf("import ended with %v", err)
	}
	if err := errors.Join(to.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}

	b = open(t, dir)
	to = image(t, b, p.Index)
	for n := range half {
		if !has(to.Have(), n) {
			t.Fatalf("chunk %d was verified before the crash and is to be fetched again", n)
		}
	}
	go func() { imported <- to.Import(t.Context(), full) }()
	for n := half; n < to.Len(); n++ {
		move(t, from, to, n)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestRebuiltWithoutNetwork: an image that somebody removed comes back from the
// frames that were kept.
func TestRebuiltWithoutNetwork(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20))
	b := open(t, t.TempDir())
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	for n := range to.Len() {
		move(t, from, to, n)
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	to.Close()
	if _, err := b.Remove(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if ok, _, _ := b.Check(t.Context(), full, p.Target.Digest); ok {
		t.Fatal("the image is still there")
	}
	to = image(t, b, p.Index)
	have, layers := to.Have(), 0
	for n := range to.Len() {
		if k, _ := to.index.Locate(n); artifact.IsLayer(to.index.Blobs[k].MediaType) && has(have, n) {
			layers++
		}
	}
	if layers == 0 {
		t.Fatal("no frame of the layer was kept")
	}
	for n := range to.Len() {
		if !has(have, n) {
			move(t, from, to, n)
		}
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestResumesWithinAChunk: containerd kept a part of a chunk.
func TestResumesWithinAChunk(t *testing.T) {
	t.Parallel()
	b, p, from, to, ingest := cutOffIngest(t)
	if err := os.Truncate(ingest, 700_001); err != nil {
		t.Fatal(err)
	}
	move(t, from, to, to.Len()-1)
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}
