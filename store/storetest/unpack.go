package storetest

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"seeder/store/unpack"
)

func unpacks(s *suite) {
	const ref = "docker.io/library/storetest-unpack:latest"
	img := NewImage(s, ref, 14)
	s.bring(img)
	u, err := s.c.Runtime.Unpacker(s.ctx, img.Target)
	if err != nil {
		s.Fatal(err)
	}
	if !s.Unpacks {
		if u != nil || !s.c.Conn.StoreOnly() {
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
	// The topmost snapshot goes: the image is not ready and can be unpacked again, also
	// when garbage is collected meanwhile. Nothing but the lease keeps those below it.
	ctx, release, err := s.c.Leases.Take(s.ctx, "storetest-unpack")
	if err != nil {
		s.Fatal(err)
	}
	if err := sn.Remove(s.ctx, identity.ChainID(m.DiffIDs).String()); err != nil {
		s.Fatal(err)
	}
	s.notReady(ref, img.Target.Digest, "not unpacked")
	present := unpack.Present()
	err = u.All(ctx, func(ctx context.Context) (int, error) {
		s.Collect(s.T)
		return present(ctx)
	}, func(context.Context, int) error { return nil })
	if err != nil {
		s.Errorf("garbage was collected while layers were unpacked: %v", err)
	}
	if err := s.c.Images.Settle(ctx, ref, img.Target); err != nil {
		s.Fatal(err)
	}
	if err := release(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.ready(ref, img.Target.Digest)
	s.Collect(s.T)
	s.ready(ref, img.Target.Digest)
}

// applyAnew: all layers are unpacked from the bottom up, also where somebody else
// unpacks one of them meanwhile, and labels are put back.
func applyAnew(s *suite) {
	const ref = "docker.io/library/storetest-apply:latest"
	if !s.Unpacks {
		return // as unpack says
	}
	img := NewImage(s, ref, 16)
	s.bring(img)
	m := img.Manifests[0]
	sn, cs := s.cl.SnapshotService("overlayfs"), s.cl.ContentStore()
	u, err := s.c.Runtime.Unpacker(s.ctx, img.Target)
	if err != nil {
		s.Fatal(err)
	}
	apply := func(ctx context.Context, i int) {
		s.Helper()
		if err := u.Apply(ctx, i); err != nil {
			s.Fatal(err)
		}
		if _, err := sn.Stat(s.ctx, identity.ChainID(m.DiffIDs[:i+1]).String()); err != nil {
			s.Errorf("layer %d is not unpacked: %v", i, err)
		}
	}
	for _, elsewhere := range []bool{false, true} {
		// An import unpacks under a lease. Without one garbage collection, which the
		// removals below cause, takes a layer whose image does not refer to it yet.
		ctx, release, err := s.c.Leases.Take(s.ctx, "storetest-apply")
		if err != nil {
			s.Fatal(err)
		}
		for i := len(m.Layers); i > 0; i-- {
			if err := sn.Remove(s.ctx, identity.ChainID(m.DiffIDs[:i]).String()); err != nil {
				s.Fatal(err)
			}
		}
		apply(ctx, 0)
		if elsewhere {
			if err := s.c.Images.Settle(ctx, ref, img.Target); err != nil {
				s.Fatal(err)
			}
		}
		for i := range m.Layers[1:] {
			apply(ctx, i+1)
		}
		s.ready(ref, img.Target.Digest)
		if err := release(s.ctx); err != nil {
			s.Fatal(err)
		}
	}
	const label = "containerd.io/uncompressed"
	for i, l := range m.Layers {
		if want := u.LayerLabels(l.Digest); len(want) != 1 || want[label] != m.DiffIDs[i].String() {
			s.Errorf("labels of layer %d: %v", i, want)
		}
		bare := content.Info{Digest: l.Digest, Labels: map[string]string{label: ""}} // an empty value removes a label
		if _, err := cs.Update(s.ctx, bare, "labels."+label); err != nil {
			s.Fatal(err)
		}
		if err := u.Label(s.ctx, i); err != nil {
			s.Fatal(err)
		}
		if info, err := cs.Info(s.ctx, l.Digest); err != nil || info.Labels[label] != m.DiffIDs[i].String() {
			s.Errorf("layer %d after Label: %v %v", i, info.Labels, err)
		}
	}
	if got := u.LayerLabels(m.Config.Digest); got != nil {
		s.Errorf("labels of the config: %v", got)
	}
}

func changes(s *suite) {
	const ref = "docker.io/library/storetest-changes:latest"
	img := NewImage(s, ref, 15)
	s.bring(img)
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	told := s.c.Checks.Changes(ctx)
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
