package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"seeder/store/ctrd"
)

// fromRegistry: the labels of a pull are what tells.
func fromRegistry(s *suite) {
	const ref = "docker.io/library/storetest-pulled:latest"
	img := NewImage(s, ref, 20)
	s.bring(img)
	is := func(want bool) {
		s.Helper()
		if got, err := s.c.Images.FromRegistry(s.ctx, ref); got != want || err != nil {
			s.Errorf("from a registry: %v %v, want %v", got, err, want)
		}
	}
	is(false)
	info := content.Info{Digest: img.Target.Digest, Labels: map[string]string{"containerd.io/distribution.source.registry.example": "library/storetest-pulled"}}
	if _, err := s.cl.ContentStore().Update(s.ctx, info, "labels.containerd.io/distribution.source.registry.example"); err != nil {
		s.Fatal(err)
	}
	is(true)
	if _, err := s.c.Images.FromRegistry(s.ctx, "docker.io/library/storetest-none:latest"); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("an unknown image: %v", err)
	}
	// k3s has a label for what is in its agent/images.
	preloaded := func(want bool) {
		s.Helper()
		if got, err := s.c.Images.Preloaded(s.ctx, ref); got != want || err != nil {
			s.Errorf("preloaded: %v %v, want %v", got, err, want)
		}
	}
	preloaded(false)
	_, err := s.cl.ImageService().Update(s.ctx, images.Image{Name: ref, Target: img.Target,
		Labels: map[string]string{"io.cattle.k3s.pinned": "pinned"}}, "labels.io.cattle.k3s.pinned")
	if err != nil {
		s.Fatal(err)
	}
	preloaded(true)
	if got, err := s.c.Images.Preloaded(s.ctx, "docker.io/library/storetest-none:latest"); got || err != nil {
		s.Errorf("an unknown image is preloaded: %v %v", got, err) // its name is one that k3s never gives
	}
}

// inUse: a container counts by the image that it was made from, whatever the name
// stands for now.
func inUse(s *suite) {
	const ref = "docker.io/library/storetest-used:latest"
	img := NewImage(s, ref, 21)
	s.bring(img)
	users := func(want ...string) {
		s.Helper()
		if got, err := s.c.Images.InUse(s.ctx, ref); err != nil || !slices.Equal(got, want) {
			s.Errorf("used by %v %v, want %v", got, err, want)
		}
	}
	users()
	if !s.Unpacks {
		return // the embedded store runs nothing
	}
	add := func(c containers.Container) {
		c.Runtime.Name, c.Spec = "io.containerd.runc.v2", &anypb.Any{TypeUrl: "x", Value: []byte("{}")}
		if _, err := s.cl.ContainerService().Create(s.ctx, c); err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { s.cl.ContainerService().Delete(context.WithoutCancel(s.ctx), c.ID) })
	}
	cri := func(id digest.Digest) map[string]typeurl.Any {
		b, err := json.Marshal(map[string]any{"Version": "v1", "Metadata": map[string]any{"ImageRef": id.String()}})
		if err != nil {
			s.Fatal(err)
		}
		return map[string]typeurl.Any{"io.cri-containerd.container.metadata": &anypb.Any{TypeUrl: "github.com/containerd/cri/pkg/store/container/Metadata", Value: b}}
	}
	add(containers.Container{ID: "storetest-plain-container", Image: ref})
	users("storetest-pl")
	pod := containers.Container{ID: "storetest-pod", Image: "docker.io/library/another:latest",
		Labels: map[string]string{"io.kubernetes.pod.name": "dashboard", "io.kubernetes.pod.namespace": "default"}}
	pod.Extensions = cri(img.Manifests[0].Config.Digest)
	add(pod)
	users("default/dashboard", "storetest-pl")
	// Made from a build that the name stood for before.
	old := containers.Container{ID: "storetest-old", Image: ref}
	old.Extensions = cri(digest.FromString("an older build"))
	add(old)
	users("default/dashboard", "storetest-pl")
}

// unpinOthers: what somebody imports moves the name, and nothing tells what it stood
// for; only what is announced stays pinned then, and what seeder did not pin.
func unpinOthers(s *suite) {
	const ref, other, k3s = "docker.io/library/storetest-builds:latest", "docker.io/library/storetest-others:1", "docker.io/library/storetest-builds:k3s"
	pinned := func(want ...string) {
		s.Helper()
		list, err := s.cl.ImageService().List(s.ctx)
		if err != nil {
			s.Fatal(err)
		}
		var got []string
		for _, img := range list {
			if img.Labels["io.cri-containerd.pinned"] != "" && (strings.Contains(img.Name, "storetest-builds") || strings.Contains(img.Name, "storetest-others")) {
				got = append(got, img.Name)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			s.Errorf("pinned: %q, want %q", got, want)
		}
	}
	byDigest := func(img *Image) string {
		repo := img.Ref[:strings.LastIndex(img.Ref, ":")]
		return repo + "@" + img.Target.Digest.String()
	}
	var builds []*Image
	for seed := range uint64(3) {
		img := NewImage(s, ref, 60+seed)
		s.bring(img)
		builds = append(builds, img)
		// As `ctr images import` leaves the name of the next build.
		if _, err := s.cl.ImageService().Update(s.ctx, images.Image{Name: ref, Target: NewImage(s, ref, 60+seed+1).Target}); err != nil {
			s.Fatal(err)
		}
	}
	last := builds[2]
	if err := s.c.Images.Settle(s.ctx, ref, last.Target); err != nil {
		s.Fatal(err)
	}
	elsewhere, preloaded := NewImage(s, other, 70), NewImage(s, k3s, 71)
	s.bring(elsewhere)
	s.bring(preloaded)
	for _, name := range []string{k3s, byDigest(preloaded)} {
		img := images.Image{Name: name, Target: preloaded.Target, Labels: map[string]string{"io.cattle.k3s.pinned": "pinned"}}
		if _, err := s.cl.ImageService().Update(s.ctx, img, "labels.io.cattle.k3s.pinned"); err != nil {
			s.Fatal(err)
		}
	}
	if _, err := s.c.Images.UnpinOthers(s.ctx, map[string][]digest.Digest{ref: {last.Target.Digest}}); err != nil {
		s.Fatal(err)
	}
	pinned(ref, byDigest(last), other, byDigest(elsewhere), k3s, byDigest(preloaded))
	released, err := s.c.Images.UnpinOthers(s.ctx, map[string][]digest.Digest{ref: {last.Target.Digest}})
	if err != nil || len(released) != 0 {
		s.Errorf("released once more: %v %v", released, err)
	}
	s.ready(ref, last.Target.Digest)
	if _, err := s.c.Images.UnpinOthers(s.ctx, map[string][]digest.Digest{ref: nil}); err != nil { // withdrawn
		s.Fatal(err)
	}
	pinned(ref, other, byDigest(elsewhere), k3s, byDigest(preloaded)) // the name itself may be somebody's by now
	off := s.Open(s.T, ctrd.Config{})
	if _, err := off.Images.UnpinOthers(s.ctx, map[string][]digest.Digest{ref: {last.Target.Digest}, other: {elsewhere.Target.Digest}, k3s: nil}); err != nil {
		s.Fatal(err)
	}
	pinned(k3s, byDigest(preloaded))
}

// keepPrevious: what a tag stood for before stays whole as long as it is asked for,
// also when every record of it is gone.
func keepPrevious(s *suite) {
	const ref = "docker.io/library/storetest-kept:latest"
	before, after := NewImage(s, ref, 22), NewImage(s, ref, 23)
	s.bring(before)
	s.bring(after)
	absent := digest.FromString("never here")
	keep := func(targets ...digest.Digest) {
		s.Helper()
		if err := s.c.Images.KeepPrevious(s.ctx, targets); err != nil {
			s.Fatal(err)
		}
	}
	keep(before.Target.Digest, absent)
	for name := range s.records(before.Target.Digest) { // as the kubelet's collection does
		if err := s.cl.ImageService().Delete(s.ctx, name); err != nil {
			s.Fatal(err)
		}
	}
	s.Collect(s.T)
	for d := range before.Blobs {
		if !s.here(d) {
			s.Errorf("blob %s of a kept version is gone", d)
		}
	}
	// It can be found and named again.
	got, err := s.c.Images.Find(s.ctx, before.Target.Digest)
	if err != nil || got.Digest != before.Target.Digest || got.MediaType != before.Target.MediaType || got.Size != before.Target.Size {
		s.Errorf("found %+v %v, want %+v", got, err, before.Target)
	}
	if err := s.c.Images.Settle(s.ctx, ref, got); err != nil {
		s.Fatal(err)
	}
	s.ready(ref, before.Target.Digest)
	if err := s.c.Images.Settle(s.ctx, ref, after.Target); err != nil {
		s.Fatal(err)
	}
	for name := range s.records(before.Target.Digest) {
		if err := s.cl.ImageService().Delete(s.ctx, name); err != nil {
			s.Fatal(err)
		}
	}
	keep()
	s.Collect(s.T)
	for d := range before.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is kept for nobody", d)
		}
	}
	s.noLeases()
	if _, err := s.c.Images.Find(s.ctx, before.Target.Digest); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("found what is gone: %v", err)
	}
	if _, err := s.c.Images.Find(s.ctx, after.Manifests[0].Layers[1].Digest); err == nil || !strings.Contains(err.Error(), "is not an image") {
		s.Errorf("a layer is an image: %v", err)
	}
}

// leaseRenewed: a lease that has lived half its time goes on with what it has.
func leaseRenewed(s *suite) {
	blob := []byte("leased for long")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	c := s.Open(s.T, ctrd.Config{LeaseTTL: 4 * time.Second})
	lctx, _, err := c.Leases.Take(s.ctx, "storetest-renewed")
	if err != nil {
		s.Fatal(err)
	}
	s.finish(lctx, s.begin(lctx, c, desc), blob)
	made := s.lease("storetest-renewed")
	renewed := made
	var releases []func(context.Context) error
	defer func() {
		for _, release := range releases {
			_ = release(s.ctx)
		}
	}()
	// Past the end of the first lease, and renewed so lately that a slow disk does not
	// outlast the last one.
	for begun := time.Now(); renewed.CreatedAt.Equal(made.CreatedAt) || time.Since(made.CreatedAt) < 5*time.Second; time.Sleep(200 * time.Millisecond) { // leases live in real time
		if time.Since(begun) > 20*time.Second {
			s.Fatal("the lease is not renewed")
		}
		_, release, err := c.Leases.Take(s.ctx, "storetest-renewed")
		if err != nil {
			s.Fatal(err)
		}
		releases = append(releases, release)
		renewed = s.lease("storetest-renewed")
	}
	s.Collect(s.T)
	if !s.here(desc.Digest) {
		s.Error("what the first lease protected is gone")
	}
	if err := c.Leases.Drop(s.ctx, "storetest-renewed"); err != nil {
		s.Error(err)
	}
	s.Collect(s.T)
	if s.here(desc.Digest) {
		s.Error("kept without a lease")
	}
	s.noLeases()
}

// lease is seeder's lease of a name.
func (s *suite) lease(name string) leases.Lease {
	s.Helper()
	list, err := s.cl.LeasesService().List(s.ctx, "id==seeder-"+name)
	if err != nil || len(list) != 1 {
		s.Fatalf("lease %s: %v %v", name, list, err)
	}
	return list[0]
}

// discard: the records of a version that nobody keeps go where no kubelet sees to it.
func discard(s *suite) {
	const ref, tag = "docker.io/library/storetest-old:latest", "docker.io/library/storetest-old:1"
	before, after := NewImage(s, ref, 24), NewImage(s, ref, 25)
	s.bring(before)
	s.Cleanup(func() { s.remove(tag) })
	if err := s.c.Images.Settle(s.ctx, tag, before.Target); err != nil {
		s.Fatal(err)
	}
	s.bring(after)
	if err := s.c.Images.Discard(s.ctx, ref, before.Target.Digest); err != nil {
		s.Fatal(err)
	}
	s.ready(tag, before.Target.Digest) // it has another tag
	if err := s.cl.ImageService().Delete(s.ctx, tag); err != nil {
		s.Fatal(err)
	}
	if err := s.c.Images.Discard(s.ctx, ref, before.Target.Digest); err != nil {
		s.Fatal(err)
	}
	left := s.names(before.Target.Digest)
	if s.Unpacks {
		if len(left) != 2 {
			s.Errorf("what a pod may name was removed: %v", left)
		}
		for _, name := range left {
			if err := s.cl.ImageService().Delete(s.ctx, name); err != nil {
				s.Fatal(err)
			}
		}
	} else if len(left) > 0 {
		s.Errorf("left: %v", left)
	}
	s.ready(ref, after.Target.Digest)
}

// clearedPin: a pin that somebody takes off is noticed by looking at the list.
func clearedPin(s *suite) {
	const ref = "docker.io/library/storetest-pin:latest"
	img := NewImage(s, ref, 26)
	s.bring(img)
	intact := func(want bool) {
		s.Helper()
		s.ready(ref, img.Target.Digest)
		if _, err := s.c.Images.List(s.ctx); err != nil {
			s.Fatal(err)
		}
		if got := s.c.Checks.Intact(s.ctx, ref); got != want {
			s.Errorf("intact: %v, want %v", got, want)
		}
	}
	intact(true)
	_, err := s.cl.ImageService().Update(s.ctx, images.Image{Name: ref, Target: img.Target,
		Labels: map[string]string{"io.cri-containerd.pinned": ""}}, "labels.io.cri-containerd.pinned")
	if err != nil {
		s.Fatal(err)
	}
	if _, err := s.c.Images.List(s.ctx); err != nil {
		s.Fatal(err)
	}
	if s.c.Checks.Intact(s.ctx, ref) {
		s.Error("intact without its pin")
	}
	if err := s.c.Images.Publish(s.ctx, ref, img.Target); err != nil {
		s.Fatal(err)
	}
	intact(true)
}

// local: how other programs on this host may know an image.
func local(s *suite) {
	const ref = "docker.io/library/storetest-local:latest"
	img := NewIndex(s, ref, 27, s.c.Conn.Platform(), "linux/s390x")
	s.bring(img)
	got, err := s.c.Images.Local(s.ctx, ref)
	if err != nil || got.Digest != img.Target.Digest {
		s.Errorf("%+v %v", got, err)
	}
	for _, id := range []digest.Digest{img.Target.Digest, img.Manifests[0].Descriptor.Digest, img.Manifests[0].Config.Digest} {
		if !slices.Contains(got.IDs, id) {
			s.Errorf("%v lacks %s", got.IDs, id)
		}
	}
	if slices.Contains(got.IDs, img.Manifests[0].Layers[0].Digest) {
		s.Error("a layer is no id")
	}
	if _, err := s.c.Images.Local(s.ctx, "docker.io/library/storetest-none:latest"); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("an unknown image: %v", err)
	}
}

// severalInOne: an archive of several images, two of them the same.
func severalInOne(s *suite) {
	const one, two, tag = "docker.io/library/storetest-a:latest", "docker.io/library/storetest-b:latest", "docker.io/library/storetest-a:2"
	a, b := NewImage(s, one, 28), NewImage(s, two, 29)
	s.imports(OCIArchiveOf(s, map[string]*Image{one: a, two: b, tag: a}), "", tag, one, two)
	s.ready(one, a.Target.Digest)
	s.ready(tag, a.Target.Digest)
	s.ready(two, b.Target.Digest)
	s.remove(one, two, tag)
	// Two tags of one image, as docker save writes them.
	s.imports(a.DockerArchive(s, tag), "", tag, one)
	if x, err := s.c.Images.Resolve(s.ctx, one); err != nil {
		s.Error(err)
	} else {
		s.ready(tag, x.Digest)
	}
	s.remove(one, tag)
	// What has no name is told, and the others are imported.
	s.Cleanup(func() { s.remove(two) })
	got, err := importInto(s.ctx, s.c, bytes.NewReader(OCIArchiveOf(s, map[string]*Image{"UPPER:1": a, two: b, "": NewImage(s, "", 31)})), "")
	if err != nil || !slices.Equal(got.Names, []string{two}) || len(got.LeftOut) != 2 || !strings.Contains(strings.Join(got.LeftOut, "; "), `"UPPER:1", which is not an image reference: the repository has capitals`) {
		s.Errorf("imported %v, said %q, %v", got.Names, got.LeftOut, err)
	}
	s.ready(two, b.Target.Digest)
	s.remove(two)
	// One of them only.
	s.imports(OCIArchiveOf(s, map[string]*Image{one: a, two: b}), two, two)
	if got := s.names(a.Target.Digest); len(got) > 0 {
		s.Errorf("named without being asked: %v", got)
	}
	if _, err := importInto(s.ctx, s.c, bytes.NewReader(OCIArchiveOf(s, map[string]*Image{one: a, two: b})), tag); err == nil || !strings.Contains(err.Error(), one+", "+two) {
		s.Errorf("an image that the archive lacks: %v", err)
	}
}
