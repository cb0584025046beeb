package dst

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/p2p/report"
)

func reader(b []byte) io.Reader { return bytes.NewReader(b) }

var operatorKinds = []kind{
	{name: "announce", group: operators, weight: 14, begin: announce},
	{name: "announce again", group: operators, weight: 3, begin: announceAgain},
	{name: "withdraw", group: operators, weight: 2, begin: withdraw(report.Withdrawal{})},
	{name: "purge", group: operators, weight: 3, begin: withdraw(report.Withdrawal{Purge: true})},
	{name: "rollback", group: operators, weight: 3, begin: rollback},
	{name: "import by hand", group: operators, weight: 2, begin: importByHand},
	{name: "reload limits", group: operators, weight: 2, begin: reload},
	{name: "rotate the secret", group: operators, weight: 2, begin: func(c *cluster, _ *machine, _ Event) (func(), bool) {
		c.rotate()
		return nil, true
	}},
}

func refOf(e Event) string { return refs()[e.Arg%uint64(len(refs()))] }

// load is `docker load`, or an import into containerd by hand.
func load(ctx context.Context, m *machine, s *faultyStore, ref string, build uint64) error {
	if err := s.gate(ctx, "load"); err != nil {
		return err
	}
	_, err := s.ImportArchive(ctx, reader(archive(ref, build)), "")
	if have, lerr := s.Store.List(context.Background()); lerr == nil && have[ref] != "" {
		m.put(ref, have[ref])
	}
	return err
}

// announce is `seeder announce` of a new build.
func announce(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	c.builds++
	build, ref := c.builds, refOf(e)
	c.operate(m, "announce "+ref, func(ctx context.Context, s *faultyStore, _ *p2p.Node) error {
		if err := load(ctx, m, s, ref, build); err != nil {
			return err
		}
		return m.announceOn(ctx, s, ref, "")
	})
	return nil, true
}

// announceAgain is `seeder announce` of whatever is there.
func announceAgain(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	ref := refOf(e)
	c.operate(m, "announce again "+ref, func(ctx context.Context, s *faultyStore, _ *p2p.Node) error {
		return m.announceOn(ctx, s, ref, "")
	})
	return nil, true
}

func withdraw(w report.Withdrawal) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(c *cluster, m *machine, e Event) (func(), bool) {
		if rec, ok := m.last[refOf(e)]; !m.up || !ok || rec.Announcement().Withdrawn {
			return nil, false
		}
		c.operate(m, "withdraw "+refOf(e), func(ctx context.Context, _ *faultyStore, n *p2p.Node) error {
			return n.Withdraw(ctx, refOf(e), w)
		})
		return nil, true
	}
}

// rollback is `seeder announce --rollback`.
func rollback(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	ref := refOf(e)
	at, err := m.node.Previous(ref)
	if err != nil {
		return nil, false
	}
	c.operate(m, "roll back "+ref, func(ctx context.Context, s *faultyStore, _ *p2p.Node) error {
		return m.announceOn(ctx, s, ref, at)
	})
	return nil, true
}

// importByHand puts another build under an announced name without a word to seeder.
func importByHand(c *cluster, m *machine, e Event) (func(), bool) {
	if !m.up {
		return nil, false
	}
	c.builds++
	build, ref := c.builds, refOf(e)
	c.operate(m, "import "+ref, func(ctx context.Context, s *faultyStore, _ *p2p.Node) error {
		return load(ctx, m, s, ref, build)
	})
	return nil, true
}

// rotate is one step of a rotation, on every host.
func (c *cluster) rotate() {
	c.rotation++
	for _, m := range c.running() {
		if err := m.node.SetSecrets(c.secrets()); err != nil {
			c.violation("%s does not take a secret: %v", m.name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// announceOn is announce on the store and the node of one life of m.
func (m *machine) announceOn(ctx context.Context, s *faultyStore, ref string, at digest.Digest) error {
	if m.store != s {
		return errGone
	}
	_, err := m.node.Announce(ctx, ref, p2p.Options{At: at})
	return err
}
