package grpcerr

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestPlainErrors: the code and the quotes of gRPC are nothing for people, and the cause
// stays known to programs.
func TestPlainErrors(t *testing.T) {
	t.Parallel()
	dial := `connection error: desc = "transport: Error while dialing: dial unix /run/k3s/containerd/containerd.sock: connect: connection refused"`
	for _, c := range []struct {
		err  error
		want string
	}{
		{status.Error(codes.Unavailable, dial), "connection refused"},
		{fmt.Errorf("list images: %w", status.Error(codes.Unavailable, dial)), "connection refused"},
		{fmt.Errorf("%s: %w", dial, errdefs.ErrUnavailable), "connection refused"},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded while waiting for connections to become ready"), "no answer in time"},
		{context.DeadlineExceeded, "no answer in time"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "error reading from server: EOF"},
		{errors.New("no such socket"), "no such socket"},
	} {
		got := Plain(c.err)
		if got.Error() != c.want || !errors.Is(got, c.err) {
			t.Errorf("%v becomes %q, want %q", c.err, got, c.want)
		}
	}
}

// TestIsClosed: the error of a connection that was closed is known from that of a context
// that was cancelled, as gRPC has it and as containerd's client has.
func TestIsClosed(t *testing.T) {
	t.Parallel()
	conn, err := grpc.NewClient("unix:"+filepath.Join(t.TempDir(), "socket"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	err = conn.Invoke(t.Context(), "/service/Method", nil, nil)
	for _, err := range []error{err, fmt.Errorf("list images: %w", err), errgrpc.ToNative(err)} {
		if !IsClosed(err) {
			t.Errorf("%v is not known", err)
		}
	}
	for _, err := range []error{nil, context.Canceled, status.Error(codes.Canceled, "context canceled"), errgrpc.ToNative(status.Error(codes.Unavailable, closing))} {
		if IsClosed(err) {
			t.Errorf("%v is of a closed connection", err)
		}
	}
}
