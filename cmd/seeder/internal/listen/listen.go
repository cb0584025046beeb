// Package listen opens the TCP address of a configuration key and serves HTTP there.
//
// It owns the bound on connections, and how a server ends. It never knows what is answered.
//
// Invariant: once Close has returned, no request is answered and no goroutine is left.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

// closeTimeout bounds how long requests may take to end by themselves.
const closeTimeout = time.Second

// TCP listens at bind, ip:port, the value of a configuration key. Of its connections at
// most maxConns are open at once: who opens more waits until others are closed.
func TCP(key, bind string, maxConns int) (net.Listener, error) {
	l, err := net.Listen("tcp", bind)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s %s: the port is in use by another process; set %s to a free one, or to \"\" for none (ss -ltnp shows who has it)", key, bind, key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", key, bind, err)
	}
	return netutil.LimitListener(l, maxConns), nil
}

// HTTP is a server that runs.
type HTTP struct {
	server *http.Server
	group  errgroup.Group
}

// Serve answers at l, the listener of a configuration key, until Close.
func Serve(key string, l net.Listener, s *http.Server) *HTTP {
	h := &HTTP{server: s}
	h.group.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s %s: %w", key, l.Addr(), err)
		}
		return nil
	})
	return h
}

// Close ends every request: those that do not end within a second are cut off.
func (h *HTTP) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := h.server.Shutdown(ctx)
	if err != nil {
		err = h.server.Close()
	}
	return errors.Join(err, h.group.Wait())
}
