package ingest_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"seeder/store/ctrd/embedded"
	"seeder/store/ctrd/ingest"
	"seeder/store/ctrd/sockettest"
)

const blob = "the bytes of a blob"

var desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(blob), Size: int64(len(blob))}

// first is the name under which the blob is written unless containerd has lost it.
var first = "seeder-" + desc.Digest.String()

// leaseID is the lease that protects what is written.
const leaseID = "test"

// caller is a context of t with the namespace and the lease.
func caller(t *testing.T) context.Context {
	return leases.WithLease(namespaces.WithNamespace(t.Context(), "k8s.io"), leaseID)
}

// store is containerd's content store, with the lease.
func store(t *testing.T) content.Store {
	t.Helper()
	s, err := embedded.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Client().LeasesService().Create(caller(t), leases.WithID(leaseID)); err != nil {
		t.Fatal(err)
	}
	return s.Client().ContentStore()
}

// lock begins to write under ref.
func lock(t *testing.T, ctx context.Context, cs content.Store, ref string) content.Writer {
	t.Helper()
	w, err := cs.Writer(ctx, content.WithRef(ref))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("what another writer wrote")); err != nil {
		t.Fatal(err)
	}
	return w
}

// withRef is WithRef of the blob, which it leaves unfinished; the names that were tried.
func withRef(ctx context.Context, cs content.Store) (tried []string, _ error) {
	return tried, ingest.WithRef(ctx, desc.Digest, func(ref string) error {
		tried = append(tried, ref)
		w, err := cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
		if err != nil {
			return err
		}
		return w.Close()
	})
}

// TestWithRefWaits: a name that another writer has is waited for.
func TestWithRefWaits(t *testing.T) {
	cs := store(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := caller(t)
		w := lock(t, ctx, cs, first)
		go func() {
			time.Sleep(3 * time.Second)
			_ = w.Close()
		}()
		start := time.Now()
		tried, err := withRef(ctx, cs)
		if took := time.Since(start); err != nil || took < 3*time.Second || took > 4*time.Second || tried[len(tried)-1] != first {
			t.Errorf("%v after %v, as %q", err, took, tried)
		}
	})
}

// TestWithRefTakesTheNext: a name that stays locked is left for the next one, a locked next
// one at once; where all are locked, the error says so.
func TestWithRefTakesTheNext(t *testing.T) {
	cs := store(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := caller(t)
		for i, c := range []struct{ ref, then string }{{first, first + "-2"}, {first + "-2", first + "-3"}, {first + "-3", first + "-4"}, {first + "-4", ""}} {
			defer lock(t, ctx, cs, c.ref).Close()
			start := time.Now()
			tried, err := withRef(ctx, cs)
			if took := time.Since(start); took < 4*time.Second || took > 6*time.Second {
				t.Errorf("%d locked: it took %v", i+1, took)
			}
			if c.then == "" && !errdefs.IsUnavailable(err) || c.then != "" && (err != nil || tried[len(tried)-1] != c.then) {
				t.Errorf("%d locked: %v, the last as %q", i+1, err, tried[len(tried)-1])
			}
		}
	})
}

// TestWithRefEnds: nothing is waited for after the end of the context, nor where the error
// is another one.
func TestWithRefEnds(t *testing.T) {
	cs := store(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := caller(t)
		defer lock(t, ctx, cs, first).Close()
		stopped := errors.New("the daemon stops")
		ending, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(time.Second, func() { cancel(stopped) })
		start := time.Now()
		if _, err := withRef(ending, cs); err != stopped || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	ctx := caller(t)
	if err := ingest.WriteWhole(ctx, cs, "another", desc, []byte(blob), nil); err != nil {
		t.Fatal(err)
	}
	if tried, err := withRef(ctx, cs); !errdefs.IsAlreadyExists(err) || len(tried) != 1 {
		t.Errorf("%v, tried %q", err, tried)
	}
}

// ingests are the names of what is unfinished.
func ingests(t *testing.T, ctx context.Context, cs content.Store) (out []string) {
	t.Helper()
	all, err := cs.ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range all {
		out = append(out, st.Ref)
	}
	return out
}

// TestAbort: what was written of a blob goes, under whichever of its names, and nothing of
// another one.
func TestAbort(t *testing.T) {
	t.Parallel()
	ctx, cs := caller(t), store(t)
	for _, ref := range []string{first, first + "-4", "of another"} {
		if err := lock(t, ctx, cs, ref).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing
		if err := ingest.Abort(ctx, cs, desc.Digest); err != nil {
			t.Error(err)
		}
		if left := ingests(t, ctx, cs); len(left) != 1 || left[0] != "of another" {
			t.Errorf("unfinished are %q", left)
		}
	}
}

// overSocket is the store behind containerd's own server of it.
func overSocket(t *testing.T, cs content.Store) *grpc.ClientConn {
	t.Helper()
	return sockettest.Dial(t, func(g *grpc.Server) { contentapi.RegisterContentServer(g, contentserver.New(cs)) },
		grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return h(srv, leased{s})
		}))
}

// leased takes namespace and lease from the headers, as containerd does.
type leased struct{ grpc.ServerStream }

// Context implements grpc.ServerStream.
func (s leased) Context() context.Context {
	ctx := s.ServerStream.Context()
	md, _ := metadata.FromIncomingContext(ctx)
	ctx = namespaces.WithNamespace(ctx, strings.Join(md.Get(namespaces.GRPCHeader), ""))
	return leases.WithLease(ctx, strings.Join(md.Get(leases.GRPCHeader), ""))
}

// TestWhole: a blob at hand replaces what was unfinished under its name, whether the store
// is in this process or behind a socket; one that is not what it is called stays
// unfinished, and one that is there is not written again.
func TestWhole(t *testing.T) {
	t.Parallel()
	type write func(ctx context.Context, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error
	for name, make := range map[string]func(*testing.T, content.Store) write{
		"in this process": func(_ *testing.T, cs content.Store) write {
			return func(ctx context.Context, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
				return ingest.WriteWhole(ctx, cs, ref, desc, p, labels)
			}
		},
		"behind a socket": func(t *testing.T, cs content.Store) write {
			conn := overSocket(t, cs)
			return func(ctx context.Context, ref string, desc ocispec.Descriptor, p []byte, labels map[string]string) error {
				return ingest.CommitWhole(ctx, conn, ref, desc, p, labels)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cs := caller(t), store(t)
			whole := make(t, cs)
			if err := lock(t, ctx, cs, first).Close(); err != nil {
				t.Fatal(err)
			}
			if err := whole(ctx, first, desc, []byte(strings.ToUpper(blob)), nil); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("other bytes: %v", err)
			}
			if left := ingests(t, ctx, cs); len(left) != 1 || left[0] != first {
				t.Errorf("unfinished are %q", left)
			}
			labels := map[string]string{"containerd.io/gc.ref.content.0": desc.Digest.String()}
			if err := whole(ctx, first, desc, []byte(blob), labels); err != nil {
				t.Fatal(err)
			}
			info, err := cs.Info(ctx, desc.Digest)
			if err != nil || info.Size != desc.Size || !maps.Equal(info.Labels, labels) {
				t.Errorf("%+v, %v", info, err)
			}
			if p, err := content.ReadBlob(ctx, cs, desc); err != nil || string(p) != blob {
				t.Errorf("%q, %v", p, err)
			}
			if left := ingests(t, ctx, cs); len(left) != 0 {
				t.Errorf("unfinished are %q", left)
			}
			if err := whole(ctx, first, desc, []byte(blob), nil); !errdefs.IsAlreadyExists(err) {
				t.Errorf("the second time: %v", err)
			}
		})
	}
}
