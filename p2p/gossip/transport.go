package gossip

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's own over UDP and TCP, except that the streams it opens
// end with ctx: memberlist's calls take no context, and a host that accepts and
// says nothing would hold up the end of this node for ten seconds.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(ctx context.Context, c *memberlist.Config) (*transport, error) {
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	if c.BindPort == 0 {
		c.BindPort = t.GetAutoBindPort()
		c.AdvertisePort = c.BindPort
	}
	return &transport{NetTransport: t, ctx: ctx}, nil
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(t.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, stop: context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// stream ends with the context of its transport.
type stream struct {
	net.Conn
	stop func() bool
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.stop()
	return s.Conn.Close()
}
