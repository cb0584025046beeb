package storetest

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"

	"seeder/store/ctrd"
)

// named are the records of an image that seeder has published.
func named(ref string, img *Image) []string {
	repo, _, _ := strings.Cut(ref, ":")
	out := []string{ref, repo + "@" + img.Target.Digest.String(), img.Manifests[0].Config.Digest.String()}
	slices.Sort(out)
	return out
}

func publish(s *suite) {
	const ref = "docker.io/library/storetest-publish:latest"
	img := NewImage(s, ref, 7)
	s.bring(img)
	for range 2 { // it is idempotent
		if err := s.c.Images.Settle(s.ctx, ref, img.Target); err != nil {
			s.Fatal(err)
		}
	}
	got := s.records(img.Target.Digest)
	if want := named(ref, img); !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		s.Errorf("names %v, want %v", got, want)
	}
	for name, labels := range got {
		if labels["io.cri-containerd.image"] != "managed" {
			s.Errorf("%s has labels %v", name, labels)
		}
		if pinned := labels["io.cri-containerd.pinned"] == "pinned"; pinned == strings.HasPrefix(name, "sha256:") {
			s.Errorf("%s is pinned: %v", name, pinned)
		}
	}
	s.Collect(s.T)
	for d := range img.Blobs {
		if !s.here(d) {
			s.Errorf("blob %s of a named image was collected", d)
		}
	}
	if err := s.c.Images.Unpin(s.ctx, ref); err != nil {
		s.Fatal(err)
	}
	for name, labels := range s.records(img.Target.Digest) {
		if labels["io.cri-containerd.pinned"] != "" {
			s.Errorf("%s is still pinned", name)
		}
	}
	if err := s.c.Images.Unpin(s.ctx, "docker.io/library/storetest-none:latest"); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("unpin what is not there: %v", err)
	}
	// Without pins there is none.
	bare := s.Open(s.T, ctrd.Config{Pin: false})
	const plain = "docker.io/library/storetest-unpinned:latest"
	s.Cleanup(func() { s.remove(plain) })
	if err := bare.Images.Settle(s.ctx, plain, img.Target); err != nil {
		s.Fatal(err)
	}
	if l := s.records(img.Target.Digest)[plain]; l["io.cri-containerd.pinned"] != "" {
		s.Errorf("pinned without being asked: %v", l)
	}
}

func publishKeepsLabels(s *suite) {
	const ref = "docker.io/library/storetest-labels:latest"
	img := NewImage(s, ref, 8)
	s.bring(img)
	_, err := s.cl.ImageService().Update(s.ctx, images.Image{Name: ref, Target: img.Target,
		Labels: map[string]string{"owner": "somebody", "io.cri-containerd.pinned": ""}}, "labels.owner", "labels.io.cri-containerd.pinned")
	if err != nil {
		s.Fatal(err)
	}
	s.notReady(ref, img.Target.Digest, "pinned")
	if err := s.c.Images.Publish(s.ctx, ref, img.Target); err != nil {
		s.Fatal(err)
	}
	if l := s.records(img.Target.Digest)[ref]; l["owner"] != "somebody" || l["io.cri-containerd.pinned"] != "pinned" {
		s.Errorf("labels %v", l)
	}
}

func retag(s *suite) {
	const ref = "docker.io/library/storetest-retag:latest"
	before, after := NewImage(s, ref, 9), NewImage(s, ref, 10)
	s.bring(before)
	s.bring(after)
	if target, err := s.c.Images.Resolve(s.ctx, ref); err != nil || target.Digest != after.Target.Digest {
		s.Errorf("%s stands for %s, %v", ref, target.Digest, err)
	}
	s.notReady(ref, before.Target.Digest, after.Target.Digest.String())
	s.ready(ref, after.Target.Digest)
	for name, labels := range s.records(before.Target.Digest) {
		if labels["io.cri-containerd.pinned"] != "" {
			s.Errorf("the replaced version is still pinned by %s", name)
		}
	}
	for name := range s.records(before.Target.Digest) { // as the kubelet's collection would
		if err := s.cl.ImageService().Delete(s.ctx, name); err != nil {
			s.Fatal(err)
		}
	}
}

func checkFindsWhatLacks(s *suite) {
	const ref = "docker.io/library/storetest-check:latest"
	img := NewImage(s, ref, 11)
	s.bring(img)
	for _, name := range named(ref, img) {
		if err := s.cl.ImageService().Delete(s.ctx, name); err != nil {
			s.Fatal(err)
		}
		s.notReady(ref, img.Target.Digest, "")
		// What is left keeps the blobs, so that naming is all there is to do.
		if err := s.c.Images.Settle(s.ctx, ref, img.Target); err != nil {
			s.Fatal(err)
		}
		s.ready(ref, img.Target.Digest)
	}
	s.notReady("docker.io/library/storetest-none:latest", img.Target.Digest, "no image of that name")
}

// strip takes the labels off a manifest that keep its layers.
func (s *suite) strip(manifest digest.Digest) {
	s.Helper()
	info, err := s.cl.ContentStore().Info(s.ctx, manifest)
	if err != nil {
		s.Fatal(err)
	}
	for label := range info.Labels {
		if strings.HasPrefix(label, "containerd.io/gc.ref.content.l.") {
			info.Labels[label] = ""
			if _, err := s.cl.ContentStore().Update(s.ctx, info, "labels."+label); err != nil {
				s.Fatal(err)
			}
		}
	}
}

// strippedLabels: layers that are here, but that nothing keeps, are kept again.
func strippedLabels(s *suite) {
	const ref = "docker.io/library/storetest-strip:latest"
	img := NewImage(s, ref, 16)
	s.bring(img)
	lease, err := s.cl.LeasesService().Create(s.ctx, leases.WithID("strip"))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.cl.LeasesService().Delete(context.WithoutCancel(s.ctx), lease) })
	for _, layer := range img.Manifests[0].Layers { // or they are collected at once
		if err := s.cl.LeasesService().AddResource(s.ctx, lease, leases.Resource{ID: layer.Digest.String(), Type: "content"}); err != nil {
			s.Fatal(err)
		}
	}
	for range 2 {
		if err := s.c.Images.Settle(s.ctx, ref, img.Target); err != nil {
			s.Fatal(err)
		}
		s.ready(ref, img.Target.Digest)
		s.strip(img.Manifests[0].Descriptor.Digest)
		s.notReady(ref, img.Target.Digest, "nothing keeps blob "+img.Manifests[0].Layers[0].Digest.String())
	}
}

// discardedContent: somebody takes the layers from under an image, as `ctr content
// prune references` does: the records stay as they are.
func discardedContent(s *suite) {
	const ref = "docker.io/library/storetest-discard:latest"
	img := NewImage(s, ref, 15)
	s.bring(img)
	if err := s.c.Images.Settle(s.ctx, ref, img.Target); err != nil {
		s.Fatal(err)
	}
	layer := img.Manifests[0].Layers[0].Digest
	ra, err := s.c.Content.ReaderAt(s.ctx, layer)
	if err != nil {
		s.Fatal(err)
	}
	_, file := ra.(*ctrd.File)
	if err := ra.Close(); err != nil {
		s.Error(err)
	}
	s.ready(ref, img.Target.Digest)
	if !s.c.Checks.Intact(s.ctx, ref) || s.c.Checks.Intact(s.ctx, "docker.io/library/storetest-none:latest") {
		s.Error("a ready image is not intact, or one that was never found ready is")
	}
	s.strip(img.Manifests[0].Descriptor.Digest)
	s.Collect(s.T)
	if s.here(layer) {
		s.Fatal("the layer is still there")
	}
	if file && s.c.Checks.Intact(s.ctx, ref) {
		s.Error("an image without a layer is intact")
	}
	s.notReady(ref, img.Target.Digest, layer.String())
}

func twoNamesOfOneConfig(s *suite) {
	const one, two = "docker.io/library/storetest-one:latest", "docker.io/library/storetest-two:latest"
	a := NewImage(s, one, 12)
	s.bring(a)
	s.imports(a.DockerArchive(s), two, two) // other layers, other manifest, the same config
	b, err := s.c.Images.Resolve(s.ctx, two)
	if err != nil || b.Digest == a.Target.Digest {
		s.Fatalf("%s: %v %v", two, b.Digest, err)
	}
	s.ready(one, a.Target.Digest)
	s.ready(two, b.Digest)
	s.remove(one)
	if err := s.c.Images.Settle(s.ctx, two, b); err != nil {
		s.Fatal(err)
	}
	s.Collect(s.T)
	s.ready(two, b.Digest)
}

func deleteNames(s *suite) {
	const ref, tag = "docker.io/library/storetest-delete:latest", "docker.io/library/storetest-delete:2"
	img := NewImage(s, ref, 13)
	s.bring(img)
	s.Cleanup(func() { s.remove(tag) })
	if err := s.c.Images.Settle(s.ctx, tag, img.Target); err != nil {
		s.Fatal(err)
	}
	s.remove(ref)
	if _, err := s.c.Images.Resolve(s.ctx, ref); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("%s after its removal: %v", ref, err)
	}
	s.ready(tag, img.Target.Digest)
	s.remove(tag)
	if got := s.names(img.Target.Digest); len(got) > 0 {
		s.Errorf("left: %v", got)
	}
	for d := range img.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is left", d)
		}
	}
	if err := s.c.Images.Delete(s.ctx, ref); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("remove again: %v", err)
	}
}
