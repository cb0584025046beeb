// Package storetest says what seeder needs of a containerd: one suite that runs
// on the embedded store and on every version of the daemon that is supported.
//
// It owns the images that it makes and removes them. It never starts a daemon:
// whoever calls Run brings one. Invariant: each test leaves the namespace as it
// found it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/ctrd"
)

// Subject is a containerd to try.
type Subject struct {
	Open    func(t *testing.T, cfg ctrd.Config) *ctrd.Containerd // cfg lacks the address; Open closes it
	Client  func(*ctrd.Containerd) *client.Client                // what is behind it
	Collect func(t *testing.T)                                   // garbage collection, now
	Unpacks bool                                                 // it has snapshotters
}

const namespace = "k8s.io"

// suite is one test's view of a subject.
type suite struct {
	*testing.T
	Subject
	ctx context.Context
	c   *ctrd.Containerd
	cl  *client.Client
}

// Run tries everything that package store uses.
func Run(t *testing.T, s Subject) {
	for name, test := range map[string]func(*suite){
		"Archives":             archives,
		"BadArchives":          badArchives,
		"UnknownReference":     unknownReference,
		"Walk":                 walk,
		"WalkIncomplete":       walkIncomplete,
		"WalkOtherPlatform":    walkOtherPlatform,
		"Ingest":               ingest,
		"IngestMismatch":       ingestMismatch,
		"Lease":                lease,
		"Publish":              publish,
		"PublishKeepsLabels":   publishKeepsLabels,
		"Retag":                retag,
		"CheckFindsWhatLacks":  checkFindsWhatLacks,
		"TwoNamesOfOneConfig":  twoNamesOfOneConfig,
		"Delete":               deleteNames,
		"Unpack":               unpack,
		"ChangesTellOfRemoval": changes,
	} {
		t.Run(name, func(t *testing.T) {
			c := s.Open(t, ctrd.Config{Pin: true})
			test(&suite{T: t, Subject: s, ctx: namespaces.WithNamespace(t.Context(), namespace), c: c, cl: s.Client(c)})
		})
	}
}

// bring imports an image; it goes with the test.
func (s *suite) bring(img *Image) {
	s.Helper()
	s.imports(img.OCIArchive(s), "", img.Ref)
}

// imports imports an archive and expects names.
func (s *suite) imports(archive []byte, ref string, want ...string) {
	s.Helper()
	s.Cleanup(func() { s.remove(want...) })
	got, err := s.c.ImportArchive(s.ctx, bytes.NewReader(archive), ref)
	if err != nil || !slices.Equal(got, want) {
		s.Fatalf("import: %v %v, want %v", got, err, want)
	}
}

func (s *suite) remove(refs ...string) {
	for _, ref := range refs {
		if err := s.c.Delete(context.WithoutCancel(s.ctx), ref); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.Errorf("remove %s: %v", ref, err)
		}
	}
}

// records are the image records that stand for a target, by name.
func (s *suite) records(target digest.Digest) map[string]map[string]string {
	s.Helper()
	list, err := s.cl.ImageService().List(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	out := map[string]map[string]string{}
	for _, i := range list {
		if i.Target.Digest == target {
			out[i.Name] = i.Labels
		}
	}
	return out
}

func (s *suite) names(target digest.Digest) []string {
	s.Helper()
	return slices.Sorted(maps.Keys(s.records(target)))
}

// here reports whether a blob is in the content store.
func (s *suite) here(d digest.Digest) bool {
	s.Helper()
	_, ok, err := s.c.Has(s.ctx, d)
	if err != nil {
		s.Fatal(err)
	}
	return ok
}

func (s *suite) ready(ref string, target digest.Digest) {
	s.Helper()
	if ok, reason, err := s.c.Check(s.ctx, ref, target); !ok || err != nil {
		s.Errorf("%s is not ready: %q %v", ref, reason, err)
	}
}

// notReady expects a reason that holds a text.
func (s *suite) notReady(ref string, target digest.Digest, want string) {
	s.Helper()
	if ok, reason, err := s.c.Check(s.ctx, ref, target); ok || err != nil || !strings.Contains(reason, want) {
		s.Errorf("%s: ready %v, %q, %v; want %q", ref, ok, reason, err, want)
	}
}

func archives(s *suite) {
	const ref = "docker.io/library/storetest-archives:latest"
	img := NewImage(s, ref, 1)
	s.imports(img.OCIArchive(s), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(packed(s, img.OCIArchive(s)), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(img.DockerArchive(s), "", ref)
	if target, err := s.c.Resolve(s.ctx, ref); err != nil {
		s.Error(err)
	} else {
		s.ready(ref, target.Digest)
	}
	s.remove(ref)
	// An archive without a name takes the one that it is given.
	img.Ref = ""
	s.imports(img.OCIArchive(s), ref, ref)
	s.ready(ref, img.Target.Digest)
}

func badArchives(s *suite) {
	const ref = "docker.io/library/storetest-bad:latest"
	img := NewImage(s, ref, 2)
	whole := img.OCIArchive(s)
	unnamed := NewImage(s, "", 2)
	for _, tc := range []struct {
		name    string
		archive []byte
		ref     string
		want    string
	}{
		{"nothing", nil, "", "docker-archive or OCI-layout"},
		{"noise", bytes.Repeat([]byte{7, 1, 200}, 5000), "", "docker-archive or OCI-layout"},
		{"no image in it", tarOf(s, map[string][]byte{"a": []byte("b")}), "", "docker-archive or OCI-layout"},
		{"cut off", whole[:len(whole)/2], "", ""},
		{"layer missing", img.OCIArchive(s, img.Manifests[0].Layers[1].Digest), "", img.Manifests[0].Layers[1].Digest.String()},
		{"no name", unnamed.OCIArchive(s), "", "seeder announce REF --from FILE"},
	} {
		s.Collect(s.T) // what the one before left may complete this one
		names, err := s.c.ImportArchive(s.ctx, bytes.NewReader(tc.archive), tc.ref)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			s.Errorf("%s: %v %v, want %q", tc.name, names, err, tc.want)
		}
		if got := s.names(img.Target.Digest); len(got) > 0 {
			s.Errorf("%s: left the names %v", tc.name, got)
		}
	}
	broken := errors.New("the client went away")
	if _, err := s.c.ImportArchive(s.ctx, &breaks{whole[:len(whole)/2], broken}, ""); !errors.Is(err, broken) || errors.Is(err, ctrd.ErrNotArchive) {
		s.Errorf("broken connection: %v", err)
	}
	s.Collect(s.T)
	for d := range img.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is left behind", d)
		}
	}
	s.noLeases()
}

// breaks is a reader that fails after some bytes.
type breaks struct {
	b   []byte
	err error
}

func (r *breaks) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, r.err
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

func (s *suite) noLeases() {
	s.Helper()
	list, err := s.cl.LeasesService().List(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	for _, l := range list {
		if strings.HasPrefix(l.ID, "seeder-") {
			s.Errorf("lease %s is left behind", l.ID)
		}
	}
}

func unknownReference(s *suite) {
	const ref = "docker.io/library/storetest-known:latest"
	s.bring(NewImage(s, ref, 3))
	_, err := s.c.Resolve(s.ctx, "docker.io/library/storetest-know:latest")
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
	if strings.HasPrefix(c.Platform(), "linux/s390x") {
		return "linux/riscv64"
	}
	return "linux/s390x"
}

func walk(s *suite) {
	const ref = "docker.io/library/storetest-walk:latest"
	ours, theirs := s.c.Platform(), other(s.c)
	img := NewIndex(s, ref, 4, theirs, ours)
	s.bring(img)
	blobs, err := s.c.Walk(s.ctx, img.Target)
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
	if blobs, err = s.c.Walk(s.ctx, img.Target); err != nil || len(blobs) != 5 {
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
	_, err := s.c.Walk(s.ctx, img.Target)
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
	if got := c.Platform(); got != other(s.c) {
		s.Fatalf("platform %s", got)
	}
	if !c.Runs(other(s.c)) || c.Runs(s.c.Platform()) {
		s.Error("Runs mistakes the platform")
	}
	if s.Unpacks {
		return // an image of another platform is not unpacked there
	}
	if _, err := c.ImportArchive(s.ctx, bytes.NewReader(img.OCIArchive(s)), ""); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.remove(ref) })
	if ok, reason, err := c.Check(s.ctx, ref, img.Target.Digest); !ok || err != nil {
		s.Errorf("not ready for its platform: %q %v", reason, err)
	}
}

func ingest(s *suite) {
	blob := bytes.Repeat([]byte("ingest "), 40_000)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Lease(s.ctx, "storetest-ingest")
	if err != nil {
		s.Fatal(err)
	}
	w, err := s.c.Ingest(lctx, desc)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := w.Write(blob[:100_000]); err != nil {
		s.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.Fatal(err)
	}
	// Another process goes on where this one stopped.
	again := s.Open(s.T, ctrd.Config{})
	if w, err = again.Ingest(lctx, desc); err != nil {
		s.Fatal(err)
	}
	if w.Offset() != 100_000 {
		s.Fatalf("goes on at %d, want 100000", w.Offset())
	}
	if s.here(desc.Digest) {
		s.Error("a blob is visible before it is committed")
	}
	if _, err := w.Write(blob[100_000:]); err != nil {
		s.Fatal(err)
	}
	if err := errors.Join(w.Commit(lctx), w.Close()); err != nil {
		s.Fatal(err)
	}
	if _, err := s.c.Ingest(lctx, desc); !errors.Is(err, ctrd.ErrExists) {
		s.Errorf("begin again: %v", err)
	}
	ra, err := s.c.ReaderAt(s.ctx, desc.Digest)
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
	if _, err := s.c.ReaderAt(s.ctx, desc.Digest); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("read what is gone: %v", err)
	}
}

func ingestMismatch(s *suite) {
	blob := []byte("what was asked for")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, release, err := s.c.Lease(s.ctx, "storetest-mismatch")
	if err != nil {
		s.Fatal(err)
	}
	defer release(s.ctx)
	w, err := s.c.Ingest(lctx, desc)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := w.Write([]byte("what came, as long")); err != nil {
		s.Fatal(err)
	}
	if err := w.Commit(lctx); !errors.Is(err, ctrd.ErrMismatch) {
		s.Errorf("commit: %v", err)
	}
	w.Close()
	if s.here(desc.Digest) {
		s.Error("another blob was committed")
	}
	if err := s.c.Abort(s.ctx, desc.Digest); err != nil {
		s.Fatal(err)
	}
	if w, err = s.c.Ingest(lctx, desc); err != nil || w.Offset() != 0 {
		s.Fatalf("after Abort: offset %d, %v", w.Offset(), err)
	}
	w.Close()
	if err := errors.Join(s.c.Abort(s.ctx, desc.Digest), s.c.Abort(s.ctx, desc.Digest)); err != nil {
		s.Errorf("Abort is not idempotent: %v", err)
	}
}

func lease(s *suite) {
	blob := []byte("leased")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	lctx, _, err := s.c.Lease(s.ctx, "storetest-lease")
	if err != nil {
		s.Fatal(err)
	}
	w, err := s.c.Ingest(lctx, desc)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := w.Write(blob); err != nil {
		s.Fatal(err)
	}
	if err := errors.Join(w.Commit(lctx), w.Close()); err != nil {
		s.Fatal(err)
	}
	s.Collect(s.T)
	if !s.here(desc.Digest) {
		s.Error("collected in spite of the lease")
	}
	// A daemon that comes back finds its lease by the name of the work.
	_, release, err := s.Open(s.T, ctrd.Config{}).Lease(s.ctx, "storetest-lease")
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
		if err := s.c.Settle(s.ctx, ref, img.Target); err != nil {
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
	if err := s.c.Unpin(s.ctx, ref); err != nil {
		s.Fatal(err)
	}
	for name, labels := range s.records(img.Target.Digest) {
		if labels["io.cri-containerd.pinned"] != "" {
			s.Errorf("%s is still pinned", name)
		}
	}
	if err := s.c.Unpin(s.ctx, "docker.io/library/storetest-none:latest"); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("unpin what is not there: %v", err)
	}
	// Without pins there is none.
	bare := s.Open(s.T, ctrd.Config{Pin: false})
	const plain = "docker.io/library/storetest-unpinned:latest"
	s.Cleanup(func() { s.remove(plain) })
	if err := bare.Settle(s.ctx, plain, img.Target); err != nil {
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
	if err := s.c.Publish(s.ctx, ref, img.Target); err != nil {
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
	if target, err := s.c.Resolve(s.ctx, ref); err != nil || target.Digest != after.Target.Digest {
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
		if err := s.c.Settle(s.ctx, ref, img.Target); err != nil {
			s.Fatal(err)
		}
		s.ready(ref, img.Target.Digest)
	}
	s.notReady("docker.io/library/storetest-none:latest", img.Target.Digest, "no image of that name")
}

func twoNamesOfOneConfig(s *suite) {
	const one, two = "docker.io/library/storetest-one:latest", "docker.io/library/storetest-two:latest"
	a := NewImage(s, one, 12)
	s.bring(a)
	s.imports(a.DockerArchive(s), two, two) // other layers, other manifest, the same config
	b, err := s.c.Resolve(s.ctx, two)
	if err != nil || b.Digest == a.Target.Digest {
		s.Fatalf("%s: %v %v", two, b.Digest, err)
	}
	s.ready(one, a.Target.Digest)
	s.ready(two, b.Digest)
	s.remove(one)
	if err := s.c.Settle(s.ctx, two, b); err != nil {
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
	if err := s.c.Settle(s.ctx, tag, img.Target); err != nil {
		s.Fatal(err)
	}
	s.remove(ref)
	if _, err := s.c.Resolve(s.ctx, ref); !errors.Is(err, fs.ErrNotExist) {
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
	if err := s.c.Delete(s.ctx, ref); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("remove again: %v", err)
	}
}

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

// CollectBy makes a containerd collect garbage: a lease that is deleted with the
// wish to wait for that.
func CollectBy(t *testing.T, cl *client.Client) {
	t.Helper()
	ctx := namespaces.WithNamespace(context.WithoutCancel(t.Context()), namespace)
	ls := cl.LeasesService()
	l, err := ls.Create(ctx, leases.WithRandomID())
	if err == nil {
		err = ls.Delete(ctx, l, leases.SynchronousDelete)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}
