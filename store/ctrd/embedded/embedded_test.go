package embedded_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"seeder/internal/disk"
	"seeder/store/ctrd/embedded"
)

func TestMain(m *testing.M) {
	// containerd's event exchange cannot be closed.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

func open(t *testing.T, root string) *embedded.Store {
	t.Helper()
	s, err := embedded.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func namespace(t *testing.T) context.Context { return namespaces.WithNamespace(t.Context(), "k8s.io") }

// lease is ctx with a new lease in it.
func lease(t *testing.T, ctx context.Context, s *embedded.Store, id string) context.Context {
	t.Helper()
	l, err := s.Client().LeasesService().Create(ctx, leases.WithID(id))
	if err != nil {
		t.Fatal(err)
	}
	return leases.WithLease(ctx, l.ID)
}

func describe(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(text), Size: int64(len(text))}
}

// write writes a blob.
func write(t *testing.T, ctx context.Context, s *embedded.Store, text string) digest.Digest {
	t.Helper()
	if err := content.WriteBlob(ctx, s.Client().ContentStore(), "ref-"+text, strings.NewReader(text), describe(text)); err != nil {
		t.Fatal(err)
	}
	return describe(text).Digest
}

// begin writes a part of a blob.
func begin(t *testing.T, ctx context.Context, cs content.Store, ref string) content.Writer {
	t.Helper()
	w, err := cs.Writer(ctx, content.WithRef(ref))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("a part")); err != nil {
		t.Fatal(err)
	}
	return w
}

func wantHas(t *testing.T, ctx context.Context, s *embedded.Store, d digest.Digest, want bool) {
	t.Helper()
	_, err := s.Client().ContentStore().Info(ctx, d)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	_, ferr := os.Stat(filepath.Join(s.Blobs(), "sha256", d.Encoded()))
	if has, file := err == nil, ferr == nil; has != want || file != want {
		t.Errorf("blob %s: known %v, its file is there %v, want %v", d, has, file, want)
	}
}

// TestOpenCollects: what has neither a name nor a lease does not outlive the next Open, nor
// Collect; what has one does.
func TestOpenCollects(t *testing.T) {
	t.Parallel()
	root, ctx := t.TempDir(), namespace(t)
	s := open(t, root)
	loose := write(t, ctx, s, "nobody's")
	leased := write(t, lease(t, ctx, s, "l"), s, "leased")
	named := write(t, ctx, s, "named")
	if _, err := s.Client().ImageService().Create(ctx, images.Image{Name: "app:v1", Target: describe("named")}); err != nil {
		t.Fatal(err)
	}
	wantHas(t, ctx, s, loose, true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, root)
	wantHas(t, ctx, s, loose, false)
	wantHas(t, ctx, s, leased, true)
	wantHas(t, ctx, s, named, true)
	if err := s.Client().LeasesService().Delete(ctx, leases.Lease{ID: "l"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	wantHas(t, ctx, s, leased, false)
	wantHas(t, ctx, s, named, true)
}

// TestCollectIngests: an ingest whose lease is gone is removed, one that the database
// never knew, and one that does not say its reference, since the disk was full when it was
// begun; one that somebody goes on with stays.
func TestCollectIngests(t *testing.T) {
	t.Parallel()
	root, ctx := t.TempDir(), namespace(t)
	s := open(t, root)
	if err := s.CollectIngests(ctx); err != nil {
		t.Errorf("before anything is written: %v", err)
	}
	dir := filepath.Join(root, "content", "ingest")
	left := begin(t, lease(t, ctx, s, "ended"), s.Client().ContentStore(), "left")
	if err := errors.Join(left.Close(), s.Client().LeasesService().Delete(ctx, leases.Lease{ID: "ended"})); err != nil {
		t.Fatal(err)
	}
	goes := begin(t, lease(t, ctx, s, "goes on"), s.Client().ContentStore(), "goes on")
	t.Cleanup(func() { goes.Close() })
	below, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	if err := begin(t, ctx, below, "k8s.io/9/stray").Close(); err != nil {
		t.Fatal(err)
	}
	if err := begin(t, ctx, s.Client().ContentStore(), "seeder-collect").Close(); err != nil { // and one of its own, cut off
		t.Fatal(err)
	}
	full := filepath.Join(dir, digest.FromString("k8s.io/10/full").Encoded())
	empty := filepath.Join(dir, digest.FromString("k8s.io/11/full").Encoded())
	if err := errors.Join(os.Mkdir(full, 0o755), os.Mkdir(empty, 0o755), os.WriteFile(filepath.Join(full, "ref"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if found, err := os.ReadDir(dir); err != nil || len(found) != 6 {
		t.Fatalf("directories of ingests: %v, %v", found, err)
	}
	if err := s.CollectIngests(ctx); err != nil {
		t.Fatal(err)
	}
	known, err := s.Client().ContentStore().ListStatuses(ctx)
	if err != nil || len(known) != 1 || known[0].Ref != "goes on" || known[0].Offset != int64(len("a part")) {
		t.Errorf("ingests that go on: %+v, %v", known, err)
	}
	if found, err := os.ReadDir(dir); err != nil || len(found) != 1 {
		t.Errorf("directories of ingests: %v, %v", found, err)
	}
}

// TestOpen: a root is needed, it is nobody else's to read, and one process has it.
func TestOpen(t *testing.T) {
	t.Parallel()
	if _, err := embedded.Open(""); err == nil {
		t.Error("opened without a root")
	}
	root := t.TempDir()
	open(t, root)
	for _, name := range []string{"content", "meta.db"} {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := embedded.Open(root); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
}
