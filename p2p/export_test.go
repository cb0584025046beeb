package p2p

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/swarm"
	"seeder/p2p/wire"
)

// CatalogHash and Record let tests compare catalogs without asking over the
// network.
func (n *Node) CatalogHash() uint64 { return n.catalog.Hash() }

func (n *Node) Record(ref string) (catalog.Record, bool) { return n.catalog.Get(ref) }

// Book registers p at the owner with that address, as a member that lies might.
func (n *Node) Book(ctx context.Context, owner string, seed digest.Digest, p swarm.Peer) error {
	_, err := n.port.client.Register(ctx, owner, seed, p)
	return err
}

// Hear hands the node a hint as gossip does.
func (n *Node) Hear(h gossip.Hint) { n.exchange.Hint(h) }

// Pulled is how often others asked this node for its catalog.
func (n *Node) Pulled() int64 { return n.exchange.Pulled() }

// SendGossip sends bytes on a stream of gossip, as a member that lies might, and waits
// for its end.
func (n *Node) SendGossip(ctx context.Context, addr string, b []byte) error {
	_, err := n.AskGossip(ctx, addr, b)
	return err
}

// AskGossip is SendGossip, and returns what the other member answered until it closed.
func (n *Node) AskGossip(ctx context.Context, addr string, b []byte) ([]byte, error) {
	conn, _, err := n.port.client.DialGossip(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	answer, _ := io.ReadAll(conn)
	return answer, nil
}

// AnnouncePrepared announces what the store need not have.
func (n *Node) AnnouncePrepared(ctx context.Context, p Prepared, on ...string) (uint64, error) {
	a, err := n.announcer.Publish(ctx, p, on, false, false)
	return a.Version, err
}

// Probe is what another node asks for.
func (n *Node) Probe(ctx context.Context, from string, nonce wire.Nonce) (wire.Answer, error) {
	return n.diagnoser.Probe(ctx, from, nonce)
}
