package ctrd_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"seeder/store/ctrd"
	"seeder/store/ctrd/embedded"
	"seeder/store/ctrd/sockettest"
)

// vanishing takes the namespace from the headers, as containerd does, and removes what a
// reader wants to read, as garbage collection may do once the blob was found.
type vanishing struct {
	grpc.ServerStream
	cs   content.Store
	dgst digest.Digest
}

// Context implements grpc.ServerStream.
func (v vanishing) Context() context.Context {
	return namespaces.WithNamespace(v.ServerStream.Context(), "k8s.io")
}

// RecvMsg implements grpc.ServerStream.
func (v vanishing) RecvMsg(m any) error {
	if err := v.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if _, reads := m.(*contentapi.ReadContentRequest); reads {
		return v.cs.Delete(v.Context(), v.dgst)
	}
	return nil
}

// TestVerifyOfWhatVanishes: a blob that containerd collects while it is verified is not
// here, and nothing has to make way for the one that is imported.
func TestVerifyOfWhatVanishes(t *testing.T) {
	t.Parallel()
	const blob = "the bytes of a blob"
	dgst := digest.FromString(blob)
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	s, err := embedded.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cs := s.Client().ContentStore()
	socket := sockettest.Serve(t, func(g *grpc.Server) { contentapi.RegisterContentServer(g, contentserver.New(cs)) },
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			return h(namespaces.WithNamespace(ctx, "k8s.io"), req)
		}),
		grpc.StreamInterceptor(func(srv any, st grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return h(srv, vanishing{st, cs, dgst})
		}))
	c, err := ctrd.Open(ctrd.Config{Address: socket, Namespace: "k8s.io"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, work := range map[string]func() error{
		"Verify": func() error {
			intact, err := c.Content.Verify(t.Context(), dgst)
			if intact || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("intact %v, %v", intact, err)
			}
			return nil
		},
		"MakeWay": func() error {
			_, _, err := c.Content.MakeWay(t.Context(), dgst)
			return err
		},
	} {
		if err := content.WriteBlob(ctx, cs, name, strings.NewReader(blob), ocispec.Descriptor{Digest: dgst, Size: int64(len(blob))}); err != nil {
			t.Fatal(err)
		}
		if err := work(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
