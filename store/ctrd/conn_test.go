package ctrd

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
)

// TestUnavailable: what says that containerd is away names its socket and the cause.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	dial := `connection error: desc = "transport: Error while dialing: dial unix /run/x.sock: connect: connection refused"`
	c := &Conn{cfg: Config{Address: "/run/x.sock"}}
	err := c.fail(errdefs.ErrUnavailable.WithMessage(dial))
	if !errors.Is(err, ErrUnavailable) || err.Error() != "containerd is not available: /run/x.sock does not answer: connection refused" {
		t.Errorf("%v", err)
	}
	// A client that another caller has given up, which is no cancelled context.
	err = c.fail(fmt.Errorf("grpc: the client connection is closing: %w", context.Canceled))
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) || err.Error() != "containerd is not available: its connection was closed meanwhile" {
		t.Errorf("%v", err)
	}
}
