package p2p

import (
	"context"
	"fmt"
	"time"

	"seeder/p2p/trust"
)

// connectionGrace is how long connections go on that were agreed on with a secret
// that is in force no more: as long as a chunk may take on any useful link.
const connectionGrace = 30 * time.Second

// SetSecrets puts other secrets in force: the first is used, all are accepted.
// Gossip and new connections use them at once. Where a secret was taken away, the
// connections from before end after connectionGrace, so that nobody stays in the
// cluster by what he knew once.
func (n *Node) SetSecrets(secrets trust.Secrets) error {
	n.secretsMu.Lock()
	defer n.secretsMu.Unlock()
	if secrets.Equal(n.secrets) {
		return nil
	}
	if err := n.creds.SetSecrets(secrets); err != nil {
		return fmt.Errorf("make the node's certificate: %w", err)
	}
	if err := n.gossip.SetKeys(secrets.GossipKeys()); err != nil {
		return err
	}
	taken := !secrets.Has(n.secrets)
	n.secrets = secrets
	n.client.Close() // what is idle; the next requests shake hands anew
	if taken {
		select {
		case <-n.expired: // a later moment takes in the earlier one
		default:
		}
		n.expired <- time.Now()
	}
	return nil
}

// expire ends the connections from before a secret was taken away.
func (n *Node) expire(ctx context.Context) {
	for {
		var before time.Time
		select {
		case before = <-n.expired:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(connectionGrace):
		case <-ctx.Done():
			return
		}
		n.server.CloseBefore(before)
		n.client.CloseBefore(before)
		n.log.Info("closed connections of a removed secret")
	}
}
