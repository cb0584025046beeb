package storetest

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

func unpack(s *suite) {
	const ref = "docker.io/library/storetest-unpack:latest"
	img := NewImage(s, ref, 14)
	s.bring(img)
	u, err := s.c.Unpacker(s.ctx, img.Target)
	if err != nil {
		s.Fatal(err)
	}
	if !s.Unpacks {
		if u != nil || !s.c.StoreOnly() {
			s.Error("a store without snapshotters unpacks")
		}
		return
	}
	m := img.Manifests[0]
	if want := []digest.Digest{m.Layers[0].Digest, m.Layers[1].Digest}; !slices.Equal(u.Layers(), want) {
		s.Errorf("layers %v, want %v", u.Layers(), want)
	}
	sn := s.cl.SnapshotService("overlayfs")
	for i := range m.Layers { // they are unpacked already
		if err := u.Apply(s.ctx, i); err != nil {
			s.Fatal(err)
		}
		info, err := sn.Stat(s.ctx, identity.ChainID(m.DiffIDs[:i+1]).String())
		if err != nil || info.Kind != snapshots.KindCommitted {
			s.Errorf("snapshot of layer %d: %+v %v", i, info, err)
		}
		blob, err := s.cl.ContentStore().Info(s.ctx, m.Layers[i].Digest)
		if err != nil || blob.Labels["containerd.io/uncompressed"] != m.DiffIDs[i].String() {
			s.Errorf("labels of layer %d: %v %v", i, blob.Labels, err)
		}
	}
	// The topmost snapshot goes: the image is not ready and can be unpacked again.
	if err := sn.Remove(s.ctx, identity.ChainID(m.DiffIDs).String()); err != nil {
		s.Fatal(err)
	}
	s.notReady(ref, img.Target.Digest, "not unpacked")
	if err := s.c.Settle(s.ctx, ref, img.Target); err != nil {
		s.Fatal(err)
	}
	s.ready(ref, img.Target.Digest)
	s.Collect(s.T)
	s.ready(ref, img.Target.Digest)
}

func changes(s *suite) {
	const ref = "docker.io/library/storetest-changes:latest"
	img := NewImage(s, ref, 15)
	s.bring(img)
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	told := s.c.Changes(ctx)
	<-told // the first word comes with the subscription
	for drained := false; !drained; {
		select {
		case <-told:
		case <-time.After(200 * time.Millisecond): // what the import said
			drained = true
		}
	}
	if err := s.cl.ImageService().Delete(s.ctx, ref); err != nil {
		s.Fatal(err)
	}
	if _, ok := <-told; !ok {
		s.Error("nothing was said of the removal within 10 s")
	}
	cancel()
	for range told { // closes when ctx ends
	}
}
