package gossip

import (
	"context"
	"crypto/tls"
	"net"

	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

// Dial connects to the transfer port at addr for a stream of gossip and returns the
// identity that the other side has proved.
type Dial func(ctx context.Context, addr string) (net.Conn, trust.NodeID, error)

// newWall is the wall before this node's memberlist: it hears who is a member from here, and
// tells what streams say.
func (g *Gossip) newWall() *wall.Wall {
	cfg := wall.Config{
		Log: g.log, Listen: g.cfg.Listen, Identity: identityOf, Outdone: g.site.outdone,
		Member: func(name string) (addr, identity string, err error) {
			m, err := g.members.byInstance(name)
			return m.Address, string(m.ID), err
		},
		Proved:    func(identity string) { g.Proved(trust.NodeID(identity)) },
		Exchanged: func(by string, user []byte) { g.vouched(trust.NodeID(by), user) },
	}
	if g.cfg.Dial != nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, string, error) {
			conn, id, err := g.cfg.Dial(ctx, addr)
			return conn, string(id), err
		}
	}
	return wall.New(cfg)
}

// identityOf is the identity that the other side of a connection has proved, empty where it
// has proved none.
func identityOf(conn net.Conn) string {
	c, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return ""
	}
	id, err := trust.PeerID(c.ConnectionState())
	if err != nil {
		return ""
	}
	return string(id)
}
