package p2ptest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/store/chunk"
)

// Subject makes the stores that Conformance tries.
type Subject struct {
	// Open returns an empty store.
	Open func(t *testing.T) p2p.Store
	// Add has a store hold an image of some hundred bytes or more under ref, as an import by
	// somebody does. Each seed is another image.
	Add func(t *testing.T, s p2p.Store, ref string, seed uint64)
}

const conformanceRef = "docker.io/library/conformance:1"

// Conformance tests the promises of p2p.Store: the store in memory, with which nodes are
// tested, keeps the same ones as the real store.
func Conformance(t *testing.T, s Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"Unknown": unknownIsNotThere, "Held": heldIsWhole, "Travels": travels, "Damaged": damagedIsNotTaken,
		"CutOff": cutOffIsNotNamed, "Removed": removedIsGone, "Changes": changesAreHeard,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

func unknownIsNotThere(t *testing.T, sub Subject) {
	s := sub.Open(t)
	ctx, d := t.Context(), digest.FromString("nothing")
	if _, err := s.Prepare(ctx, conformanceRef, chunk.PrepareOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Prepare: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := s.SeedIndex(ctx, d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SeedIndex: %v, want %v", err, fs.ErrNotExist)
	}
	if img, err := s.Image(ctx, []byte("no index")); err == nil {
		t.Errorf("Image opened %v, of no index", errors.Join(img.Close()))
	}
	notReady(t, s, d)
	if s.Has(ctx, d) {
		t.Error("it has what nobody gave it")
	}
	if err := s.Release(ctx, conformanceRef); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Release: %v", err)
	}
	if _, err := s.Remove(ctx, conformanceRef); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove: %v", err)
	}
	if _, _, err := s.Health(ctx); err != nil {
		t.Errorf("Health: %v", err)
	}
}

// notReady says that the reference is neither listed nor ready, with a reason.
func notReady(t *testing.T, s p2p.Store, target digest.Digest) {
	t.Helper()
	if ready, reason, err := s.Check(t.Context(), conformanceRef, target); ready || reason == "" || err != nil {
		t.Errorf("Check: %v %q %v, want not ready and why", ready, reason, err)
	}
	if have, err := s.List(t.Context()); err != nil || have[conformanceRef] != "" {
		t.Errorf("List: %v %v", have, err)
	}
}

// isReady says that the reference is there, listed and ready.
func isReady(t *testing.T, s p2p.Store, target digest.Digest) {
	t.Helper()
	if ready, reason, err := s.Check(t.Context(), conformanceRef, target); !ready || err != nil {
		t.Errorf("Check: %v %q %v, want ready", ready, reason, err)
	}
	if have, err := s.List(t.Context()); err != nil || have[conformanceRef] != target {
		t.Errorf("List: %v %v, want %s", have, err, target)
	}
	if !s.Has(t.Context(), target) || !s.Intact(t.Context(), conformanceRef) {
		t.Error("what is ready is not there, or not intact")
	}
}

// prepared is an image that a new store holds, ready to be announced.
func prepared(t *testing.T, sub Subject) (p2p.Store, p2p.Prepared) {
	t.Helper()
	s := sub.Open(t)
	sub.Add(t, s, conformanceRef, 1)
	p, err := s.Prepare(t.Context(), conformanceRef, chunk.PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

// opened is the image of an index, closed at the end of the test.
func opened(t *testing.T, s p2p.Store, index []byte) p2p.Image {
	t.Helper()
	img, err := s.Image(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

func heldIsWhole(t *testing.T, sub Subject) {
	s, p := prepared(t, sub)
	isReady(t, s, p.Target.Digest)
	if b, err := s.SeedIndex(t.Context(), digest.FromBytes(p.Index)); err != nil || !bytes.Equal(b, p.Index) {
		t.Errorf("SeedIndex: %d bytes, %v, want the %d that were prepared", len(b), err, len(p.Index))
	}
	img := opened(t, s, p.Index)
	if img.Have().Count() != img.Len() || img.Wanted().Count() != img.Len() || len(img.Missing()) > 0 {
		t.Errorf("of %d chunks it has %d, wants %d, lacks %v", img.Len(), img.Have().Count(), img.Wanted().Count(), img.Missing())
	}
	var total int64
	for n := range img.Len() {
		total += img.Bytes(n)
		frame(t, img, n)
	}
	if total != p.Bytes {
		t.Errorf("the chunks have %d bytes, the image %d", total, p.Bytes)
	}
	if again, err := s.Prepare(t.Context(), conformanceRef, chunk.PrepareOptions{At: p.Target.Digest}); err != nil || !bytes.Equal(again.Index, p.Index) {
		t.Errorf("prepared again it has another index (%v)", err)
	}
}

// frame reads a chunk as it travels.
func frame(t *testing.T, img p2p.Image, n int) (chunk.Encoding, []byte) {
	t.Helper()
	f, err := img.Frame(t.Context(), n)
	if err != nil {
		t.Fatalf("frame %d: %v", n, err)
	}
	b, err := io.ReadAll(f.Payload)
	if err := errors.Join(err, f.Payload.Close()); err != nil || int64(len(b)) != f.Bytes {
		t.Fatalf("frame %d has %d bytes of %d (%v)", n, len(b), f.Bytes, err)
	}
	return f.Encoding, b
}

// imported is the end of an Import beside which chunks come.
func imported(ctx context.Context, img p2p.Image) <-chan error {
	done := make(chan error, 1)
	go func() { done <- img.Import(ctx, conformanceRef) }()
	return done
}

func travels(t *testing.T, sub Subject) {
	from, p := prepared(t, sub)
	to := sub.Open(t)
	have, lacks := opened(t, from, p.Index), opened(t, to, p.Index)
	if lacks.Have().Count() != 0 || len(lacks.Missing()) == 0 {
		t.Fatalf("an empty store has %d chunks and lacks %v", lacks.Have().Count(), lacks.Missing())
	}
	if _, err := lacks.Frame(t.Context(), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a frame that is not here: %v, want %v", err, fs.ErrNotExist)
	}
	notReady(t, to, p.Target.Digest)
	done := imported(t.Context(), lacks)
	for n := range have.Len() {
		enc, b := frame(t, have, n)
		if ok, err := lacks.Put(t.Context(), n, enc, b); !ok || err != nil {
			t.Fatalf("chunk %d was not taken: %v %v", n, ok, err)
		}
	}
	if err := <-done; err != nil {
		t.Fatalf("Import: %v", err)
	}
	isReady(t, to, p.Target.Digest)
	if len(lacks.Missing()) > 0 {
		t.Errorf("it still lacks %v", lacks.Missing())
	}
	frame(t, lacks, lacks.Len()-1)
}

func damagedIsNotTaken(t *testing.T, sub Subject) {
	from, p := prepared(t, sub)
	have, lacks := opened(t, from, p.Index), opened(t, sub.Open(t), p.Index)
	enc, b := frame(t, have, 0)
	b[len(b)/2] ^= 1
	if ok, err := lacks.Put(t.Context(), 0, enc, b); ok || err != nil {
		t.Errorf("a damaged chunk: %v %v, want not verified and no error", ok, err)
	}
	if lacks.Have().Has(0) {
		t.Error("it holds a damaged chunk")
	}
}

func cutOffIsNotNamed(t *testing.T, sub Subject) {
	from, p := prepared(t, sub)
	to := sub.Open(t)
	have, lacks := opened(t, from, p.Index), opened(t, to, p.Index)
	ctx, cancel := context.WithCancel(t.Context())
	done := imported(ctx, lacks)
	for n := range have.Len() - 1 {
		enc, b := frame(t, have, n)
		if ok, err := lacks.Put(ctx, n, enc, b); !ok || err != nil {
			t.Fatalf("chunk %d was not taken: %v %v", n, ok, err)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Import without the last chunk: %v, want %v", err, context.Canceled)
	}
	notReady(t, to, p.Target.Digest)
	if lacks.Have().Count() != have.Len()-1 {
		t.Errorf("of %d chunks that came it has %d", have.Len()-1, lacks.Have().Count())
	}
}

func removedIsGone(t *testing.T, sub Subject) {
	s, p := prepared(t, sub)
	if users, err := s.InUse(t.Context(), conformanceRef); err != nil || len(users) > 0 {
		t.Errorf("InUse: %v %v", users, err)
	}
	if _, err := s.Remove(t.Context(), conformanceRef); err != nil {
		t.Fatal(err)
	}
	notReady(t, s, p.Target.Digest)
	if _, err := s.Prepare(t.Context(), conformanceRef, chunk.PrepareOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Prepare of what was removed: %v, want %v", err, fs.ErrNotExist)
	}
}

func changesAreHeard(t *testing.T, sub Subject) {
	s := sub.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	changes := s.Changes(ctx)
	sub.Add(t, s, conformanceRef, 1)
	<-changes
	cancel()
	for range changes { // it closes
	}
}
