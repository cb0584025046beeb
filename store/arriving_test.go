package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/iotest"
	"time"

	"seeder/store/artifact"
	"seeder/store/ctrd"
)

// TestArriving: a blob is read while its chunks come, in whatever order, while it is being
// imported, and after that; no byte is given before it is here.
func TestArriving(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 3<<20))
	b := open(t, t.TempDir())
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	k := 0
	for k = range to.blobs {
		if artifact.IsLayer(to.blobs[k].info.MediaType) {
			break
		}
	}
	info := to.blobs[k].info
	held, err := a.OpenHeld(t.Context(), info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	want, err := io.ReadAll(held.Whole())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.OpenArriving(t.Context(), p.Target.Digest); err != nil {
		t.Errorf("a blob that is here and open: %v", err)
	}
	if _, err := b.OpenArriving(t.Context(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a blob of no image: %v", err)
	}

	blob, err := b.OpenArriving(t.Context(), info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if blob.Here() || blob.Size() != info.Bytes {
		t.Errorf("before the first chunk: here %v, %d bytes, want %d", blob.Here(), blob.Size(), info.Bytes)
	}
	first := to.index.Start(k)
	last := first + len(info.Sums) - 1
	move(t, from, to, last) // the last chunk comes first
	tail := make([]byte, 100)
	if _, err := blob.ReadAt(tail, info.Bytes-100); err != nil || !bytes.Equal(tail, want[info.Bytes-100:]) {
		t.Errorf("the end, which is here: %v", err)
	}

	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	waits, err := b.OpenArriving(short, info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	if n, err := waits.ReadAt(tail, 0); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the beginning, which is not here: %d bytes, %v", n, err)
	}

	type result struct {
		got []byte
		err error
	}
	read := make(chan result, 1)
	go func() {
		got, err := io.ReadAll(blob.Whole())
		read <- result{got, err}
	}()
	imported := make(chan error, 1)
	go func() { imported <- to.Import(t.Context(), full) }()
	for n := range to.Len() {
		if n != last {
			move(t, from, to, n)
		}
	}
	if r := <-read; r.err != nil || !bytes.Equal(r.got, want) {
		t.Errorf("read %d of %d bytes beside the fetch, %v", len(r.got), len(want), r.err)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	if !blob.Here() {
		t.Error("the blob is not here after the import")
	}
	if err := iotest.TestReader(io.NewSectionReader(blob, 0, blob.Size()), want); err != nil {
		t.Error(err)
	}
}

// TestArrivingOfOthers: what only other platforms need never comes, so nobody waits for it.
func TestArrivingOfOthers(t *testing.T) {
	t.Parallel()
	_, p := announceSide(t, noise(t, 100_000))
	b, err := Open(t.Context(), Config{DataDir: t.TempDir(), Containerd: ctrd.Config{Address: ctrd.Embedded, Platform: "linux/s390x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	to := image(t, b, p.Index)
	if to.Excluded() == "" {
		t.Fatal("the image is for s390x")
	}
	if _, err := b.OpenArriving(t.Context(), p.Target.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	to.Close()
}
