package p2p

import (
	"context"

	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/report"
)

// openLoop gives the converge loop what it needs of this node.
func (n *Node) openLoop(context.Context) error {
	n.loop = converge.New(converge.Config{
		Catalog: n.catalog, Store: n.store, Keeper: n.store, Remover: n.store,
		Column: board{n.cells, n.swarms, &n.freed}, Seeds: seeds{n},
		Fetch: n.obtain, Announce: n.announceAgain,
		MayAnnounce: func() bool { return n.mayAnnounce(n.identity.ID()) },
		Down:        n.stillDown,
		Note:        func(kind report.EventKind, a catalog.Announcement, reason string) { n.note(kind, a, reason) },
		Failed:      func(cause string) { n.metrics.converge.WithLabelValues(cause).Inc() },
		Beat:        func() { n.beats.beat("converge") },
		Self:        n.identity.ID(), Labels: n.cfg.Labels, Accept: n.cfg.Accept,
		Follow: n.cfg.Follow, Auto: n.cfg.Auto, AutoLocal: n.cfg.AutoLocal,
		KeepPrevious: n.cfg.KeepPrevious, Pinned: n.cfg.Pinned, Log: n.log,
	})
	return nil
}

// board shows what the converge loop finds in this node's column (converge.Column).
type board struct {
	cells  *cells
	swarms *swarms
	freed  *freed
}

// Begin implements converge.Column.
func (b board) Begin(a catalog.Announcement) { b.cells.begin(a, b.swarms.sentBytes(a.Seed.Digest)) }

// Queue implements converge.Column.
func (b board) Queue(a catalog.Announcement, reason string) {
	b.cells.update(a, func(c *cell) {
		if c.state == report.Ready { // was ready, is no longer
			c.done, c.origin = 0, origin{}
		}
		c.state, c.reason = report.Waiting, reason
	})
}

// Settle implements converge.Column.
func (b board) Settle(a catalog.Announcement, s report.State, reason string, lackingBytes int64) {
	b.cells.settle(a, s, reason)
	if lackingBytes > 0 {
		b.cells.update(a, func(c *cell) { c.lacking = lackingBytes })
	}
}

// Remove implements converge.Column.
func (b board) Remove(a catalog.Announcement) { b.cells.remove(a) }

// Purged implements converge.Column.
func (b board) Purged(ref string, bytes int64) {
	b.freed.forget(ref)
	b.freed.add(ref, bytes)
}

// Freed implements converge.Column.
func (b board) Freed(ref string, bytes int64) { b.freed.add(ref, bytes) }
