package p2p_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"seeder/internal/pattern"
	"seeder/p2p"
	"seeder/p2p/catalog"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// simNode is a whole node on a host of a network in memory.
type simNode struct {
	*p2p.Node
	store *p2ptest.Store
	host  *p2ptest.Host
	cfg   p2p.Config
	up    bool
}

// simCluster is a cluster in virtual time. One goroutine uses it, in a bubble of
// synctest.
type simCluster struct {
	t     *testing.T
	net   *p2ptest.Network
	rng   *rand.Rand
	nodes []*simNode
	// newest is what must be left at the end: of all records that were ever
	// published the one that wins, by reference.
	newest map[string]catalog.Record
	builds int
}

// allHold is how many nodes, the first ones, hold everything. The others hold what
// has the tag all, and nothing in a cluster of more than 50, so that a large one is
// not mostly TLS handshakes: a fetch makes some thirty. What is announced they know
// anyway.
const allHold = 10

// patterns are those of the configuration.
func patterns(t *testing.T, list ...string) pattern.List {
	t.Helper()
	l, err := pattern.ParseList(list)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// refFor is a reference, for all nodes or for the first allHold.
func refFor(name, tag string) string { return "docker.io/library/" + name + ":" + tag }

func (nd *simNode) mayHold(ref string) bool {
	return nd.cfg.Accept == nil || nd.cfg.Accept[0].String() == "*:all" && strings.HasSuffix(ref, ":all")
}

// newSim returns a cluster whose nodes do not run yet. Like the agents of k3s all
// nodes know the first three.
func newSim(t *testing.T, seed uint64, nodes int) *simCluster {
	t.Helper()
	secrets, err := trust.ParseSecrets([]byte(trust.GenerateSecret())) // a chosen one costs a second under the race detector
	if err != nil {
		t.Fatal(err)
	}
	c := &simCluster{t: t, net: p2ptest.NewNetwork(seed), rng: rand.New(rand.NewPCG(seed, 1)), newest: map[string]catalog.Record{}}
	join := func() []string { return []string{simIP(0), simIP(1), simIP(2)} }
	dir := t.TempDir()
	for i := range nodes {
		name := fmt.Sprintf("n%03d", i)
		nd := &simNode{store: p2ptest.NewStore(), host: c.net.Host(simIP(i)), cfg: p2p.Config{
			Name: name, Version: "test", DataDir: filepath.Join(dir, name), Secrets: secrets, Join: join, Pinned: true,
			GossipBind: simIP(i) + ":7950", TransferBind: simIP(i) + ":7951",
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})).With("node", name),
		}}
		nd.cfg.Network = nd.host
		switch {
		case i < allHold:
		case nodes > 50:
			nd.cfg.Accept = patterns(t, "nothing:at-all")
		default:
			nd.cfg.Accept = patterns(t, "*:all")
		}
		if err := os.Mkdir(nd.cfg.DataDir, 0o700); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, nd)
	}
	return c
}

func simIP(i int) string { return fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250) }

// start opens nodes at one virtual instant.
func (c *simCluster) start(nodes ...*simNode) {
	c.t.Helper()
	for _, nd := range nodes {
		nd.host.SetUp(true)
		nd.Node = p2p.New(nd.cfg, nd.store)
		if err := nd.Open(context.Background()); err != nil {
			c.t.Fatalf("open %s: %v", nd.cfg.Name, err)
		}
		nd.up = true
	}
}

// leave closes nodes, which say farewell.
func (c *simCluster) leave(nodes ...*simNode) {
	c.t.Helper()
	var wg sync.WaitGroup
	for _, nd := range nodes {
		nd.up = false
		wg.Go(func() {
			if err := nd.Close(); err != nil {
				c.t.Errorf("close %s: %v", nd.cfg.Name, err)
			}
		})
	}
	wg.Wait()
}

// kill takes nodes away without a word: the others hear nothing of how they end.
func (c *simCluster) kill(nodes ...*simNode) {
	c.t.Helper()
	for _, nd := range nodes {
		nd.host.SetUp(false)
	}
	c.leave(nodes...)
}

// stop ends the cluster and everything that it has left behind: memberlist's
// timers and goroutines have deadlines, but nobody waits for them. Goroutines that
// are there after that make synctest fail the test.
func (c *simCluster) stop() {
	c.t.Helper()
	c.kill(c.running()...)
	time.Sleep(5 * time.Minute)
}

func (c *simCluster) running() []*simNode {
	var out []*simNode
	for _, nd := range c.nodes {
		if nd.up {
			out = append(out, nd)
		}
	}
	return out
}

// announce publishes a new build of ref on nd.
func (c *simCluster) announce(nd *simNode, ref string) {
	c.t.Helper()
	c.builds++
	a := nd.store.Add(ref, []byte(fmt.Sprintf("build %d of %s, made on %s", c.builds, ref, nd.cfg.Name)), 16)
	if _, err := nd.AnnouncePrepared(context.Background(), a); err != nil {
		c.t.Fatal(err)
	}
	c.published(nd, ref)
}

// withdraw publishes the withdrawal of ref on nd.
func (c *simCluster) withdraw(nd *simNode, ref string) {
	c.t.Helper()
	if err := nd.Withdraw(context.Background(), ref, report.Withdrawal{Purge: true}); err != nil {
		c.t.Fatal(err)
	}
	c.published(nd, ref)
}

func (c *simCluster) published(nd *simNode, ref string) {
	c.t.Helper()
	rec, ok := nd.Record(ref)
	if !ok {
		c.t.Fatalf("%s has no record of %s, which it has published", nd.cfg.Name, ref)
	}
	if old, ok := c.newest[ref]; !ok || catalog.Newer(rec, old) {
		c.newest[ref] = rec
	}
}

// within lets virtual time pass until ok holds, and returns how much that was.
func (c *simCluster) within(limit time.Duration, what string, ok func() error) time.Duration {
	c.t.Helper()
	began := time.Now()
	for step := 20 * time.Millisecond; ; {
		err := ok()
		took := time.Since(began)
		if err == nil {
			c.t.Logf("%s: after %s", what, took)
			return took
		}
		if took > limit {
			c.t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		if took > time.Minute {
			step = time.Second
		}
		time.Sleep(step)
	}
}

// allAlive says whether every running node sees all running nodes, and only those.
func (c *simCluster) allAlive() error {
	running := c.running()
	for _, nd := range running {
		if got := nd.Status(context.Background()).Members; got != len(running) {
			return fmt.Errorf("%s sees %d members of %d", nd.cfg.Name, got, len(running))
		}
	}
	return nil
}

// same says whether all running nodes have the newest record of every reference,
// and equal catalogs.
func (c *simCluster) same() error {
	running := c.running()
	for _, nd := range running {
		for ref, want := range c.newest {
			if got, _ := nd.Record(ref); got.Hash() != want.Hash() {
				return fmt.Errorf("%s has %+v of %s, want %+v", nd.cfg.Name, got.Announcement(), ref, want.Announcement())
			}
		}
		if a, b := nd.CatalogHash(), running[0].CatalogHash(); a != b {
			return fmt.Errorf("the catalogs of %s and %s differ: %x and %x", nd.cfg.Name, running[0].cfg.Name, a, b)
		}
	}
	return nil
}

// converged says whether besides that all running nodes hold what they are meant to,
// and nothing that is withdrawn.
func (c *simCluster) converged() error {
	if err := c.same(); err != nil {
		return err
	}
	for _, nd := range c.running() {
		have, err := nd.store.List(context.Background())
		if err != nil {
			return err
		}
		for ref, rec := range c.newest {
			want := rec.Announcement().Target.Digest
			if rec.Announcement().Withdrawn {
				want = ""
			} else if !nd.mayHold(ref) {
				continue
			}
			if have[ref] != want {
				return fmt.Errorf("%s holds %q under %s, want %q", nd.cfg.Name, have[ref], ref, want)
			}
		}
	}
	return nil
}

// packetBytes is what gossip sends in d.
func (c *simCluster) packetBytes(d time.Duration) int64 {
	before := c.net.PacketBytes()
	time.Sleep(d)
	return c.net.PacketBytes() - before
}

// any is a running node by chance.
func (c *simCluster) any() *simNode {
	running := c.running()
	return running[c.rng.IntN(len(running))]
}

func hosts(nodes []*simNode) []*p2ptest.Host {
	var out []*p2ptest.Host
	for _, nd := range nodes {
		out = append(out, nd.host)
	}
	return out
}
