package storetest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/ctrd"
)

func ingest(s *suite) {
	blob := bytes.Repeat([]byte("ingest "), 40_000)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Leases.Take(s.ctx, "storetest-ingest")
	if err != nil {
		s.Fatal(err)
	}
	w := s.begin(lctx, s.c, desc)
	if _, err := w.Write(blob[:100_000]); err != nil {
		s.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.Fatal(err)
	}
	// Another process goes on where this one stopped.
	again := s.Open(s.T, ctrd.Config{})
	w = s.begin(lctx, again, desc)
	if w.Offset() != 100_000 {
		s.Fatalf("goes on at %d, want 100000", w.Offset())
	}
	if s.here(desc.Digest) {
		s.Error("a blob is visible before it is committed")
	}
	s.finish(lctx, w, blob[100_000:])
	if _, err := s.c.Content.Ingest(lctx, desc); !errors.Is(err, ctrd.ErrExists) {
		s.Errorf("begin again: %v", err)
	}
	ra, err := s.c.Content.ReaderAt(s.ctx, desc.Digest)
	if err != nil {
		s.Fatal(err)
	}
	got := make([]byte, len(blob))
	if _, err := ra.ReadAt(got, 0); err != nil || !bytes.Equal(got, blob) {
		s.Errorf("reads another blob, %v", err)
	}
	if err := errors.Join(ra.Close(), release(s.ctx)); err != nil {
		s.Error(err)
	}
	s.Collect(s.T)
	if s.here(desc.Digest) {
		s.Error("what no image and no lease needs is kept")
	}
	if _, err := s.c.Content.ReaderAt(s.ctx, desc.Digest); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("read what is gone: %v", err)
	}
}

// begin begins to write a blob into c, or goes on.
func (s *suite) begin(ctx context.Context, c *ctrd.Containerd, desc ocispec.Descriptor) *ctrd.Ingest {
	s.Helper()
	w, err := c.Content.Ingest(ctx, desc)
	if err != nil {
		s.Fatal(err)
	}
	return w
}

// finish writes the rest of a blob and commits it.
func (s *suite) finish(ctx context.Context, w *ctrd.Ingest, rest []byte) {
	s.Helper()
	_, err := w.Write(rest)
	if err := errors.Join(err, w.Commit(ctx, nil), w.Close()); err != nil {
		s.Fatal(err)
	}
}

func ingestMismatch(s *suite) {
	blob := []byte("what was asked for")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Leases.Take(s.ctx, "storetest-mismatch")
	if err != nil {
		s.Fatal(err)
	}
	defer release(s.ctx)
	w := s.begin(lctx, s.c, desc)
	if _, err := w.Write([]byte("what came, as long")); err != nil {
		s.Fatal(err)
	}
	if err := w.Commit(lctx, nil); !errors.Is(err, ctrd.ErrMismatch) {
		s.Errorf("commit: %v", err)
	}
	w.Close()
	if s.here(desc.Digest) {
		s.Error("another blob was committed")
	}
	if err := s.c.Content.Abort(s.ctx, desc.Digest); err != nil {
		s.Fatal(err)
	}
	if w, err = s.c.Content.Ingest(lctx, desc); err != nil || w.Offset() != 0 {
		s.Fatalf("after Abort: offset %d, %v", w.Offset(), err)
	}
	w.Close()
	if err := errors.Join(s.c.Content.Abort(s.ctx, desc.Digest), s.c.Content.Abort(s.ctx, desc.Digest)); err != nil {
		s.Errorf("Abort is not idempotent: %v", err)
	}
}

// ingestLocked: a name that containerd does not give back holds nothing up for good.
func ingestLocked(s *suite) {
	blob := []byte("written under another name")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Leases.Take(s.ctx, "storetest-locked")
	if err != nil {
		s.Fatal(err)
	}
	defer release(s.ctx)
	lost := s.begin(lctx, s.c, desc)
	w := s.begin(lctx, s.c, desc)
	if s.finish(lctx, w, blob); !s.here(desc.Digest) {
		s.Error("it is not here")
	}
	if err := errors.Join(lost.Close(), s.c.Content.Abort(s.ctx, desc.Digest)); err != nil {
		s.Error(err)
	}
}

// writeWhole: one call writes a blob with its labels, whatever an earlier try left.
func writeWhole(s *suite) {
	blob := []byte("a small layer, or a manifest")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Leases.Take(s.ctx, "storetest-whole")
	if err != nil {
		s.Fatal(err)
	}
	w := s.begin(lctx, s.c, desc)
	if _, err := w.Write([]byte("something else")); err != nil {
		s.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.Fatal(err)
	}
	const label = "containerd.io/uncompressed"
	want := digest.FromString("unpacked").String()
	if err := s.c.Content.WriteWhole(lctx, desc, blob, map[string]string{label: want}); err != nil {
		s.Fatal(err)
	}
	info, err := s.cl.ContentStore().Info(s.ctx, desc.Digest)
	if err != nil || info.Size != desc.Size || info.Labels[label] != want {
		s.Errorf("it is there as %+v, %v", info, err)
	}
	if got, err := content.ReadBlob(s.ctx, s.cl.ContentStore(), desc); err != nil || !bytes.Equal(got, blob) {
		s.Errorf("reads %q, %v", got, err)
	}
	if err := s.c.Content.WriteWhole(lctx, desc, blob, map[string]string{label: "another"}); !errors.Is(err, ctrd.ErrExists) {
		s.Errorf("write it again: %v", err)
	}
	if info, err := s.cl.ContentStore().Info(s.ctx, desc.Digest); err != nil || info.Labels[label] != want {
		s.Errorf("written again, its labels are %v, %v", info.Labels, err)
	}
	// What is there already is protected by the lease of the one that writes it again.
	other, releaseOther, err := s.c.Leases.Take(s.ctx, "storetest-whole-2")
	if err != nil {
		s.Fatal(err)
	}
	if err := s.c.Content.WriteWhole(other, desc, blob, nil); !errors.Is(err, ctrd.ErrExists) {
		s.Errorf("write it under another lease: %v", err)
	}
	if err := release(s.ctx); err != nil {
		s.Error(err)
	}
	s.Collect(s.T)
	if !s.here(desc.Digest) {
		s.Error("collected in spite of the other lease")
	}
	if err := releaseOther(s.ctx); err != nil {
		s.Error(err)
	}
	s.Collect(s.T)
	if s.here(desc.Digest) {
		s.Error("what no image and no lease needs is kept")
	}
	s.noLeases()
}

func writeWholeMismatch(s *suite) {
	blob := []byte("what was asked for at once")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Leases.Take(s.ctx, "storetest-whole-mismatch")
	if err != nil {
		s.Fatal(err)
	}
	defer release(s.ctx)
	for _, wrong := range []string{"what came at once, as long", "short", ""} {
		if err := s.c.Content.WriteWhole(lctx, desc, []byte(wrong), nil); !errors.Is(err, ctrd.ErrMismatch) {
			s.Errorf("write %q: %v", wrong, err)
		}
		if s.here(desc.Digest) {
			s.Errorf("%q was committed", wrong)
		}
	}
	if err := s.c.Content.WriteWhole(lctx, desc, make([]byte, ctrd.MaxWholeBytes+1), nil); err == nil {
		s.Error("more than a message takes is written at once")
	}
	if err := errors.Join(s.c.Content.Abort(s.ctx, desc.Digest), s.c.Content.WriteWhole(lctx, desc, blob, nil)); err != nil || !s.here(desc.Digest) {
		s.Errorf("after Abort: %v", err)
	}
}

func lease(s *suite) {
	blob := []byte("leased")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, _, err := s.c.Leases.Take(s.ctx, "storetest-lease")
	if err != nil {
		s.Fatal(err)
	}
	s.finish(lctx, s.begin(lctx, s.c, desc), blob)
	s.Collect(s.T)
	if !s.here(desc.Digest) {
		s.Error("collected in spite of the lease")
	}
	// A daemon that comes back finds its lease by the name of the work.
	_, release, err := s.Open(s.T, ctrd.Config{}).Leases.Take(s.ctx, "storetest-lease")
	if err != nil {
		s.Fatal(err)
	}
	if err := errors.Join(release(s.ctx), release(s.ctx)); err != nil {
		s.Errorf("release: %v", err)
	}
	s.Collect(s.T)
	if s.here(desc.Digest) {
		s.Error("kept without a lease")
	}
	s.noLeases()
}
