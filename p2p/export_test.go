package p2p

import (
	"context"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
)

// CatalogHash and Record let tests compare catalogs without asking over the
// network.
func (n *Node) CatalogHash() uint64 { return n.catalog.Hash() }

func (n *Node) Record(ref string) (catalog.Record, bool) { return n.catalog.Get(ref) }

// Book registers p at the owner with that address, as a member that lies might.
func (n *Node) Book(ctx context.Context, owner string, seed digest.Digest, p swarm.Peer) error {
	_, err := n.client.Register(ctx, owner, seed, p)
	return err
}
