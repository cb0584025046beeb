package grpcerr

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
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
