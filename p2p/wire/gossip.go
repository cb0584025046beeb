package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"seeder/p2p/trust"
)

// DialGossip opens a stream of gossip to another node's transfer port and returns
// the identity that the other side has proved. The error, also one of a later read,
// wraps trust.ErrSecretsDiffer where that is the reason.
func (c *Client) DialGossip(ctx context.Context, addr string) (net.Conn, trust.NodeID, error) {
	if err := checkAddress(addr); err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	nc, err := c.cfg.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, "", err
	}
	var out *conn
	out = newConn(nc, unlimited, c.cfg.Sent, c.cfg.Received, func() { c.conns.remove(out) })
	c.conns.add(out)
	tc := tls.Client(out, c.cfg.Credentials.ClientConfig(protocolGossip))
	if err := tc.HandshakeContext(ctx); err != nil {
		out.Close()
		return nil, "", fmt.Errorf("handshake with %s: %w", addr, trust.Explain(err))
	}
	id, err := trust.PeerID(tc.ConnectionState())
	if err != nil {
		tc.Close()
		return nil, "", err
	}
	return gossipConn{tc}, id, nil
}

// gossipConn explains why the other side ended the handshake after this side's part
// of it: its alert is read where bytes are expected.
type gossipConn struct{ *tls.Conn }

// alertTimeout bounds the wait for the alert of a connection that does not take
// bytes any more.
const alertTimeout = time.Second

// Write implements net.Conn.
func (c gossipConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && c.SetReadDeadline(time.Now().Add(alertTimeout)) == nil {
		if _, rerr := c.Read(make([]byte, 1)); errors.Is(rerr, trust.ErrSecretsDiffer) {
			err = rerr
		}
	}
	return n, err
}

// Read implements net.Conn.
func (c gossipConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		err = trust.Explain(err)
	}
	return n, err
}
