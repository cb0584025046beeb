package storetest

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/store/ctrd"
)

func unknownReference(s *suite) {
	const ref = "docker.io/library/storetest-known:latest"
	s.bring(NewImage(s, ref, 3))
	_, err := s.c.Images.Resolve(s.ctx, "docker.io/library/storetest-know:latest")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nearest: "+ref) {
		s.Errorf("unknown reference: %v", err)
	}
}

// order is the digests of blobs.
func order(blobs []ctrd.Blob) []digest.Digest {
	var out []digest.Digest
	for _, b := range blobs {
		out = append(out, b.Digest)
	}
	return out
}

// other is a platform that no host of this architecture runs.
func other(c *ctrd.Containerd) string {
	if strings.HasPrefix(c.Conn.Platform(), "linux/s390x") {
		return "linux/riscv64"
	}
	return "linux/s390x"
}

func walk(s *suite) {
	const ref = "docker.io/library/storetest-walk:latest"
	ours, theirs := s.c.Conn.Platform(), other(s.c)
	img := NewIndex(s, ref, 4, theirs, ours)
	s.bring(img)
	blobs, err := s.c.Content.Walk(s.ctx, img.Target)
	if err != nil {
		s.Fatal(err)
	}
	a, b := img.Manifests[0], img.Manifests[1]
	want := []digest.Digest{img.Target.Digest, a.Descriptor.Digest, b.Descriptor.Digest, a.Config.Digest, b.Config.Digest,
		a.Layers[0].Digest, a.Layers[1].Digest, b.Layers[0].Digest, b.Layers[1].Digest}
	if got := order(blobs); !slices.Equal(got, want) {
		s.Errorf("order:\n%v\nwant\n%v", got, want)
	}
	for _, x := range blobs[1:] {
		mine := slices.Contains([]digest.Digest{b.Descriptor.Digest, b.Config.Digest, b.Layers[0].Digest, b.Layers[1].Digest}, x.Digest)
		if want := map[bool]string{true: ours, false: theirs}[mine]; !slices.Equal(x.For, []string{want}) {
			s.Errorf("%s is for %v, want %s", x.Digest, x.For, want)
		}
	}
	s.ready(ref, img.Target.Digest)
	// Another platform's layers may be absent: it is not given, and does no harm.
	if err := s.cl.ContentStore().Delete(s.ctx, a.Layers[0].Digest); err != nil {
		s.Fatal(err)
	}
	if blobs, err = s.c.Content.Walk(s.ctx, img.Target); err != nil || len(blobs) != 5 {
		s.Errorf("without the other platform's layer: %v %v", order(blobs), err)
	}
	s.ready(ref, img.Target.Digest)
}

func walkIncomplete(s *suite) {
	const ref = "docker.io/library/storetest-incomplete:latest"
	img := NewImage(s, ref, 5)
	s.bring(img)
	lost := img.Manifests[0].Layers[1].Digest
	if err := s.cl.ContentStore().Delete(s.ctx, lost); err != nil {
		s.Fatal(err)
	}
	_, err := s.c.Content.Walk(s.ctx, img.Target)
	var missing *ctrd.MissingError
	if !errors.As(err, &missing) || missing.Missing.Digest != lost || missing.What != "layer" || !strings.Contains(err.Error(), "discard_unpacked_layers") {
		s.Errorf("walk: %v", err)
	}
	s.notReady(ref, img.Target.Digest, lost.String())
}

func walkOtherPlatform(s *suite) {
	const ref = "docker.io/library/storetest-other:latest"
	img := NewIndex(s, ref, 6, other(s.c))
	c := s.Open(s.T, ctrd.Config{Platform: other(s.c), Pin: true})
	if got := c.Conn.Platform(); got != other(s.c) {
		s.Fatalf("platform %s", got)
	}
	if !c.Conn.Runs(other(s.c)) || c.Conn.Runs(s.c.Conn.Platform()) {
		s.Error("Runs mistakes the platform")
	}
	if _, err := importInto(s.ctx, c, bytes.NewReader(img.OCIArchive(s)), ""); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.remove(ref) })
	if ok, reason, err := c.Checks.Check(s.ctx, ref, img.Target.Digest); !ok || err != nil {
		s.Errorf("not ready for its platform: %q %v", reason, err)
	}
	if s.Unpacks { // who runs another platform names it, so that it can be given to others
		s.remove(ref)
		s.bring(img)
		s.notReady(ref, img.Target.Digest, "the image has nothing for "+s.c.Conn.Platform())
	}
}
