// Package storetest says what seeder needs of a containerd: one suite that runs
// on the embedded store and on every version of the daemon that is supported.
//
// It owns the images that it makes and removes them. It never starts a daemon:
// the caller of Run brings one. Invariant: each test leaves the namespace as it
// found it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"seeder/store"
	"seeder/store/ctrd"
)

// Subject is a containerd to try.
type Subject struct {
	Open    func(t *testing.T, cfg ctrd.Config) *ctrd.Containerd // cfg lacks the address; Open closes it
	Client  func(*ctrd.Containerd) *client.Client                // what is behind it
	Collect func(t *testing.T)                                   // garbage collection, now
	Unpacks bool                                                 // it has snapshotters
	Blobs   string                                               // the directory of its blobs, as this process sees it
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
		"IngestLocked":         ingestLocked,
		"WriteWhole":           writeWhole,
		"WriteWholeMismatch":   writeWholeMismatch,
		"Lease":                lease,
		"Publish":              publish,
		"PublishKeepsLabels":   publishKeepsLabels,
		"Retag":                retag,
		"CheckFindsWhatLacks":  checkFindsWhatLacks,
		"StrippedLabels":       strippedLabels,
		"DiscardedContent":     discardedContent,
		"TwoNamesOfOneConfig":  twoNamesOfOneConfig,
		"Delete":               deleteNames,
		"Unpack":               unpacks,
		"ApplyAnew":            applyAnew,
		"ChangesTellOfRemoval": changes,
		"FromRegistry":         fromRegistry,
		"InUse":                inUse,
		"KeepPrevious":         keepPrevious,
		"LeaseRenewed":         leaseRenewed,
		"Discard":              discard,
		"UnpinOthers":          unpinOthers,
		"ClearedPin":           clearedPin,
		"Local":                local,
		"SeveralInOne":         severalInOne,
		"HostileArchives":      hostileArchives,
		"AbsentParts":          absentParts,
		"Corpus":               corpus,
		"Refusals":             refusals,
		"Bzip2":                bzip2d,
		"Aliases":              aliases,
		"ByDigest":             byDigest,
		"OnlyManifest":         onlyManifest,
		"SingleManifest":       singleManifest,
		"InvalidTags":          invalidTags,
		"ImportHealsDamage":    importHealsDamage,
		"RewrittenKeeps":       rewrittenKeeps,
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
	got, err := importInto(s.ctx, s.c, bytes.NewReader(archive), ref)
	if err != nil || !slices.Equal(got.Names, want) {
		s.Fatalf("import: %v %v, want %v", got.Names, err, want)
	}
}

// importInto imports an archive as package store does.
func importInto(ctx context.Context, c *ctrd.Containerd, r io.Reader, ref string) (store.Imported, error) {
	return store.Archives{Containerd: c}.Import(ctx, r, ref)
}

func (s *suite) remove(refs ...string) {
	for _, ref := range refs {
		if err := s.c.Images.Delete(context.WithoutCancel(s.ctx), ref); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
	_, ok, err := s.c.Content.Has(s.ctx, d)
	if err != nil {
		s.Fatal(err)
	}
	return ok
}

func (s *suite) ready(ref string, target digest.Digest) {
	s.Helper()
	if ok, reason, err := s.c.Checks.Check(s.ctx, ref, target); !ok || err != nil {
		s.Errorf("%s is not ready: %q %v", ref, reason, err)
	}
}

// notReady expects a reason that holds a text.
func (s *suite) notReady(ref string, target digest.Digest, want string) {
	s.Helper()
	if ok, reason, err := s.c.Checks.Check(s.ctx, ref, target); ok || err != nil || !strings.Contains(reason, want) {
		s.Errorf("%s: ready %v, %q, %v; want %q", ref, ok, reason, err, want)
	}
	if s.c.Checks.Intact(s.ctx, ref) {
		s.Errorf("%s: intact, although the check before has found that it is not ready", ref)
	}
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
