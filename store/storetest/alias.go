package storetest

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"

	"seeder/store/ctrd"
	"seeder/store/imageref"
)

// aliases: an image under another way to write its reference, as `ctr images import`
// leaves it, is found by the reference; of two builds the one that was named last.
func aliases(s *suite) {
	const ref = "docker.io/library/storetest-alias:v1"
	is := s.cl.ImageService()
	name := func(name string, img *Image) {
		s.Helper()
		_ = is.Delete(s.ctx, name)
		if _, err := is.Create(s.ctx, images.Image{Name: name, Target: img.Target}); err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { s.remove(name) })
	}
	finds := func(what string, want ctrd.Named) {
		s.Helper()
		got, err := s.c.Images.ResolveNamed(s.ctx, ref)
		if err != nil || got.Target.Digest != want.Target.Digest || got.As != want.As || got.Other != want.Other {
			s.Errorf("%s: %+v %v, want %+v", what, got, err, want)
		}
	}
	if _, err := s.c.Images.ResolveNamed(s.ctx, ref); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("of nothing: %v", err)
	}
	old, young := NewImage(s, "docker.io/library/storetest-aliasold:v1", 700), NewImage(s, "docker.io/library/storetest-aliasyoung:v1", 701)
	s.bring(old)
	s.bring(young)
	for _, short := range []string{"storetest-alias:v1", "index.docker.io/library/storetest-alias:v1", "docker.io/storetest-alias:v1"} {
		name(short, old)
		finds(short, ctrd.Named{Target: old.Target, As: short})
		if pulled, err := s.c.Images.FromRegistry(s.ctx, ref); pulled || err != nil {
			s.Errorf("%s: pulled %v %v", short, pulled, err)
		}
		if _, err := s.c.Images.Local(s.ctx, ref); err != nil {
			s.Errorf("%s: %v", short, err)
		}
		s.remove(short)
	}
	name("storetest-alias:v1", old)
	if err := s.c.Images.Settle(s.ctx, ref, old.Target); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.remove(ref) })
	finds("both at one build", ctrd.Named{Target: old.Target})
	name("storetest-alias:v1", young)
	finds("the short one is newer", ctrd.Named{Target: young.Target, As: "storetest-alias:v1", Other: ref})
	if err := s.c.Images.Settle(s.ctx, ref, young.Target); err != nil {
		s.Fatal(err)
	}
	finds("moved", ctrd.Named{Target: young.Target})
	name("storetest-alias:v1", old)
	if err := s.c.Images.Settle(s.ctx, ref, old.Target); err != nil {
		s.Fatal(err)
	}
	if err := s.c.Images.Settle(s.ctx, ref, young.Target); err != nil {
		s.Fatal(err)
	}
	finds("the short one is older", ctrd.Named{Target: young.Target, Other: "storetest-alias:v1"})
}

// byDigest: a reference by digest leaves no record behind, and is not one of another
// target.
func byDigest(s *suite) {
	img := NewImage(s, "", 710)
	ref := "docker.io/library/storetest-bydigest@" + img.Target.Digest.String()
	s.imports(img.OCIArchive(s), ref, ref)
	s.ready(ref, img.Target.Digest)
	if err := imageref.CheckDigest(ref, img.Target.Digest); err != nil {
		s.Error(err)
	}
	other := "docker.io/library/storetest-bydigest@sha256:" + strings.Repeat("0", 64)
	if err := imageref.CheckDigest(other, img.Target.Digest); err == nil || !strings.Contains(err.Error(), "but the image is "+img.Target.Digest.String()) {
		s.Errorf("another digest: %v", err)
	}
	// Another tag of the image keeps what it needs.
	const tag = "docker.io/library/storetest-bydigest:v1"
	if err := s.c.Images.Settle(s.ctx, tag, img.Target); err != nil {
		s.Fatal(err)
	}
	s.remove(ref)
	if got := s.names(img.Target.Digest); !slices.Contains(got, tag) || !slices.Contains(got, img.Manifests[0].Config.Digest.String()) {
		s.Errorf("of the tag there are %v", got)
	}
	s.remove(tag)
	if got := s.names(img.Target.Digest); len(got) > 0 {
		s.Errorf("left the names %v", got)
	}
	s.imports(img.OCIArchive(s), ref, ref)
	s.remove(ref)
	if got := s.names(img.Target.Digest); len(got) > 0 {
		s.Errorf("removed by digest, left the names %v", got)
	}
	s.Collect(s.T)
	for d := range img.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is left", d)
		}
	}
}

// onlyManifest: an index of one image has one, however many attestations it has.
func onlyManifest(s *suite) {
	const ref = "docker.io/library/storetest-only:v1"
	one := NewIndex(s, ref, 720, other(s.c))
	s.bring(one)
	if got, err := s.c.Content.OnlyManifest(s.ctx, one.Target); err != nil || got.Digest != one.Manifests[0].Descriptor.Digest {
		s.Errorf("of an index of one: %v %v", got.Digest, err)
	}
	s.remove(ref)
	two := NewIndex(s, ref, 730, other(s.c), s.c.Conn.Platform())
	s.bring(two)
	if _, err := s.c.Content.OnlyManifest(s.ctx, two.Target); err == nil || !strings.Contains(err.Error(), "an index of 2") {
		s.Errorf("of an index of two: %v", err)
	}
	if got, err := s.c.Content.OnlyManifest(s.ctx, two.Manifests[0].Descriptor); err != nil || got.Digest != two.Manifests[0].Descriptor.Digest {
		s.Errorf("of a manifest: %v %v", got.Digest, err)
	}
}
