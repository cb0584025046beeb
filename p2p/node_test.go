package p2p_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

const testRef = "docker.io/library/k3s-dashboard:latest"

// testNode is one node of a cluster on loopback.
type testNode struct {
	*p2p.Node
	store *p2ptest.Store
	cfg   p2p.Config
	addr  string // of both ports, where it is joined
}

// cluster starts n nodes that share a secret; all but the first join the first.
func cluster(t *testing.T, n int) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range n {
		var join []string
		if i > 0 {
			join = []string{nodes[0].addr}
		}
		nodes = append(nodes, newTestNode(t, fmt.Sprintf("n%d", i), trust.GenerateSecret(), join))
		if i > 0 {
			nodes[i].cfg.Secrets = nodes[0].cfg.Secrets
		}
		nodes[i].open(t)
	}
	for _, nd := range nodes {
		nd.waitFor(t, fmt.Sprintf("%d alive members", n), func() bool { return alive(nd) == n })
	}
	return nodes
}

func newTestNode(t *testing.T, name, secret string, join []string) *testNode {
	t.Helper()
	secrets, err := trust.ParseSecrets([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	return &testNode{
		store: p2ptest.NewStore(),
		addr:  addr,
		cfg: p2p.Config{
			Name: name, Version: "test", DataDir: t.TempDir(),
			GossipBind: addr, TransferBind: addr, // udp and tcp
			Join: func() []string { return join }, Secrets: secrets, Pinned: true,
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name),
		},
	}
}

// loopbacks counts the addresses given out.
var loopbacks atomic.Uint32

// freeAddr is a loopback address that no other node of any test has: with a host
// of its own nobody can take the port while a node is away.
func freeAddr(t *testing.T) string {
	t.Helper()
	n := loopbacks.Add(1)
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+os.Getpid()%250, n/250, 1+n%250))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// open starts the node, or starts it again after close with the same disk.
func (nd *testNode) open(t *testing.T) {
	t.Helper()
	nd.Node = p2p.New(nd.cfg, nd.store)
	if err := nd.Node.Open(t.Context()); err != nil {
		t.Fatalf("open %s: %v", nd.cfg.Name, err)
	}
	t.Cleanup(func() { nd.Node.Close() })
}

func (nd *testNode) close(t *testing.T) {
	t.Helper()
	if err := nd.Node.Close(); err != nil {
		t.Fatalf("close %s: %v", nd.cfg.Name, err)
	}
}

// waitFor polls a condition of the real network until it holds.
func (nd *testNode) waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			imgs, err := nd.Images(context.Background())
			t.Fatalf("%s: not within 30 s: %s; images %+v %v; members %+v", nd.cfg.Name, what, imgs, err, nd.Members())
		}
	}
}

func alive(nd *testNode) int {
	c := 0
	for _, m := range nd.Members().Members {
		if m.State == "alive" {
			c++
		}
	}
	return c
}

// holds waits until the node's store has ref at the announced target.
func (nd *testNode) holds(t *testing.T, a p2p.Prepared) {
	t.Helper()
	nd.waitFor(t, a.Reference+" at "+a.Target.Digest.String(), func() bool {
		have, _ := nd.store.List(context.Background())
		return have[a.Reference] == a.Target.Digest
	})
}

// blob is random, so that chunks differ; the seed makes it repeatable.
func blob(seed uint64, bytes int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, bytes)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func announce(t *testing.T, nd *testNode, a p2p.Prepared, on ...string) uint64 {
	t.Helper()
	v, err := nd.AnnouncePrepared(t.Context(), a, on...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAnnounceReachesEveryNode(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 4)
	a := nodes[0].store.Add(testRef, blob(1, 3<<20), 256<<10)
	if v := announce(t, nodes[0], a); v != 1 {
		t.Fatalf("first announcement has version %d, want 1", v)
	}
	for _, nd := range nodes {
		nd.holds(t, a)
	}
	nodes[3].waitFor(t, "matrix complete", func() bool {
		imgs, err := nodes[3].Images(t.Context(), testRef)
		return err == nil && imgs.Images[0].Ready == 4 && imgs.Images[0].Total == 4
	})
	if v := announce(t, nodes[2], a); v != 1 {
		t.Fatalf("announcing what the catalog says made version %d, want 1", v)
	}
}

func TestNewBuildMovesEveryNode(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	first := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], first)
	nodes[2].holds(t, first)
	second := nodes[2].store.Add(testRef, blob(2, 1<<20), 256<<10) // another host, which received the first
	if v := announce(t, nodes[2], second); v != 2 {
		t.Fatalf("second announcement has version %d, want 2", v)
	}
	for _, nd := range nodes {
		nd.holds(t, second)
	}
}

func TestLateJoinerLostImageAndRestart(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a)
	nodes[1].holds(t, a)

	late := newTestNode(t, "late", trust.GenerateSecret(), []string{nodes[0].addr})
	late.cfg.Secrets = nodes[0].cfg.Secrets
	late.open(t)
	late.holds(t, a)

	late.store.Forget(testRef)
	late.holds(t, a)

	all := append(nodes, late)
	for _, nd := range all {
		nd.close(t)
	}
	late.store.Forget(testRef) // lost while everything was down
	for _, nd := range all {
		nd.open(t)
	}
	late.holds(t, a)
}

func TestStoreAwayThenBack(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	nodes[1].store.SetDown(p2ptest.ErrDown)
	nodes[1].waitFor(t, "says that the store is away", func() bool {
		return !nodes[1].Status(t.Context()).Containerd.OK
	})
	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a)
	nodes[0].waitFor(t, "a reason in the matrix", func() bool {
		imgs, err := nodes[0].Images(t.Context(), testRef)
		if err != nil || len(imgs.Images[0].Nodes) != 2 {
			return false
		}
		c := imgs.Images[0].Nodes[1]
		return c.State == report.Waiting && strings.Contains(c.Reason, p2ptest.ErrDown.Error())
	})
	nodes[1].store.SetDown(nil)
	nodes[1].holds(t, a)
}

func TestWithdrawAndPurge(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 2)
	a := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], a)
	nodes[1].holds(t, a)
	if err := nodes[1].Withdraw(t.Context(), testRef, report.Withdrawal{Purge: true}); err != nil {
		t.Fatal(err)
	}
	for _, nd := range nodes {
		nd.waitFor(t, "image purged", func() bool {
			have, _ := nd.store.List(t.Context())
			return len(have) == 0
		})
	}
	err := nodes[0].Withdraw(t.Context(), "docker.io/library/k3s-dashbord:latest", report.Withdrawal{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("withdraw of an unknown reference: %v", err)
	}
}

// A purge is done once: who brings the image back afterwards means it.
func TestPurgeIsDoneOnce(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 1)
	nd := nodes[0]
	a := nd.store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nd, a)
	if err := nd.Withdraw(t.Context(), testRef, report.Withdrawal{Purge: true}); err != nil {
		t.Fatal(err)
	}
	nd.waitFor(t, "image purged", func() bool {
		have, _ := nd.store.List(t.Context())
		return len(have) == 0
	})
	other := nd.store.Add("docker.io/library/other:latest", blob(2, 1<<10), 256<<10)
	nd.store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nd, other)
	nd.close(t)
	nd.open(t)
	nd.waitFor(t, "the other image ready", func() bool {
		imgs, err := nd.Images(t.Context(), other.Reference)
		return err == nil && imgs.Images[0].Ready == 1
	})
	nd.holds(t, a)
}

// cellOf is what nd says of a node's image.
func cellOf(t *testing.T, nd *testNode, node string) report.NodeState {
	t.Helper()
	imgs, err := nd.Images(t.Context(), testRef)
	if err == nil {
		for _, c := range imgs.Images[0].Nodes {
			if c.Name == node {
				return c
			}
		}
	}
	return report.NodeState{}
}

// A build that somebody imports on a host under an announced name stays there,
// over a restart too, until it is announced, another one is, or it is removed.
func TestImportByHandIsLeftAlone(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	nd := nodes[1]
	nd.store.Add(testRef, blob(9, 1<<20), 256<<10) // an old one from before seeder
	first := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], first)
	nodeReady := func() bool { return cellOf(t, nd, "n1").State == report.Ready }
	nd.waitFor(t, "what was there before is replaced", nodeReady)

	byHand := nd.store.Add(testRef, blob(2, 1<<20), 256<<10)
	excluded := func() bool {
		c := cellOf(t, nodes[0], "n1")
		return c.State == report.Excluded && strings.Contains(c.Reason, byHand.Target.Digest.String())
	}
	nd.waitFor(t, "the build by hand is seen", excluded)
	nd.close(t)
	nd.open(t)
	nd.waitFor(t, "the build by hand is seen after a restart", excluded)
	nd.holds(t, byHand)

	nd.store.Forget(testRef)
	nd.holds(t, first)
	nd.waitFor(t, "ready again", nodeReady)

	byHand = nd.store.Add(testRef, blob(3, 1<<20), 256<<10)
	nd.waitFor(t, "the build by hand is seen", excluded)
	announce(t, nd, byHand)
	for _, o := range nodes {
		o.holds(t, byHand)
	}
	nodes[2].store.Add(testRef, blob(4, 1<<20), 256<<10)
	third := nodes[0].store.Add(testRef, blob(5, 1<<20), 256<<10)
	announce(t, nodes[0], third)
	for _, o := range nodes {
		o.holds(t, third)
	}
}

// images.follow: the host that announced an image announces what replaces it.
func TestFollow(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	for _, nd := range nodes {
		nd.close(t)
		nd.cfg.Follow = true
		nd.open(t)
	}
	first := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], first)
	for _, nd := range nodes {
		nd.holds(t, first)
	}
	second := nodes[0].store.Add(testRef, blob(2, 1<<20), 256<<10)
	for _, nd := range nodes {
		nd.holds(t, second)
	}
	nodes[0].waitFor(t, "all ready at version 2", func() bool {
		imgs, err := nodes[0].Images(t.Context(), testRef)
		return err == nil && imgs.Images[0].Ready == 3 && imgs.Images[0].Version == 2
	})
}

// TestFollowKeepsAnyPlatform: a build that follows is announced for any platform where
// the one before was, and an announcement without that ends it.
func TestFollowKeepsAnyPlatform(t *testing.T) {
	t.Parallel()
	nodes := following(t)
	a := nodes[0]
	first := a.store.Add(testRef, blob(1, 1<<20), 256<<10)
	if _, err := a.Announce(t.Context(), testRef, p2p.Options{AnyPlatform: true}); err != nil {
		t.Fatal(err)
	}
	for _, nd := range nodes {
		nd.holds(t, first)
	}
	second := a.store.Add(testRef, blob(2, 1<<20), 256<<10)
	for _, nd := range nodes {
		nd.holds(t, second)
	}
	if rec, _ := a.Record(testRef); !rec.Announcement().AnyPlatform || !a.store.ForAll(testRef) {
		t.Errorf("the build that followed is announced as %+v, prepared for any platform: %v", rec.Announcement(), a.store.ForAll(testRef))
	}
	if _, err := a.Announce(t.Context(), testRef, p2p.Options{At: second.Target.Digest}); err != nil {
		t.Fatal(err)
	}
	if rec, _ := a.Record(testRef); !rec.Announcement().AnyPlatform || rec.Announcement().Version != 2 {
		t.Errorf("going to a target is announced as %+v", rec.Announcement())
	}
	if _, err := a.Announce(t.Context(), testRef, p2p.Options{}); err != nil {
		t.Fatal(err)
	}
	if rec, _ := a.Record(testRef); rec.Announcement().AnyPlatform || rec.Announcement().Version != 3 {
		t.Errorf("announced without --any-platform it is %+v", rec.Announcement())
	}
}

// following are two nodes that follow what they have announced.
func following(t *testing.T) []*testNode {
	t.Helper()
	secret := trust.GenerateSecret()
	a := newTestNode(t, "n0", secret, nil)
	nodes := []*testNode{a, newTestNode(t, "n1", secret, []string{a.addr})}
	for _, nd := range nodes {
		nd.cfg.Follow = true
		nd.open(t)
	}
	return nodes
}

// What the kubelet pulls from a registry under an announced name is nobody's new build.
func TestFollowsNoPull(t *testing.T) {
	t.Parallel()
	nodes := following(t)
	first := nodes[0].store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, nodes[0], first)
	for _, nd := range nodes {
		nd.holds(t, first)
	}
	nodes[0].store.SetPulled(testRef)
	nodes[0].store.Add(testRef, blob(2, 1<<20), 256<<10)
	nodes[0].waitFor(t, "the pull is left alone", func() bool {
		imgs, err := nodes[0].Images(t.Context(), testRef)
		if err != nil || imgs.Images[0].Version != 1 {
			t.Fatalf("a pull was announced: %+v %v", imgs, err)
		}
		for _, s := range imgs.Images[0].Nodes {
			if s.State == report.Excluded && strings.Contains(s.Reason, "pulled from a registry") {
				return true
			}
		}
		return false
	})
	nodes[1].holds(t, first)
}

func TestUnknownReferenceNamesTheNearest(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 1)
	announce(t, nodes[0], nodes[0].store.Add(testRef, blob(1, 1<<10), 256<<10))
	_, err := nodes[0].Images(t.Context(), "docker.io/library/k3s-dashbord:latest")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), testRef) {
		t.Fatalf("got %v, want not-exist naming %s", err, testRef)
	}
}

func TestOnlyAnnouncersAnnounce(t *testing.T) {
	t.Parallel()
	nd := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	nd.cfg.Announcers = []trust.NodeID{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
	nd.open(t)
	nd.store.Add(testRef, blob(1, 1<<10), 256<<10)
	_, err := nd.Announce(t.Context(), testRef, p2p.Options{})
	if err == nil || !strings.Contains(err.Error(), string(nd.ID())) {
		t.Fatalf("got %v, want a refusal that names this node's id", err)
	}
}

// TestStrangersAnnouncementIsNotTaken: a node that is in nobody's `announcers` can
// announce on itself as it likes; no other takes it.
func TestStrangersAnnouncementIsNotTaken(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	rogue, good, nd := nodes[0], nodes[1], nodes[2]
	nd.close(t)
	nd.cfg.Announcers = []trust.NodeID{good.ID()}
	log := nd.record(t)
	nd.open(t)
	announce(t, rogue, rogue.store.Add(testRef, blob(1, 1<<10), 256<<10))
	nd.waitFor(t, "the announcement is refused", func() bool {
		return len(log.lines("announcer="+string(rogue.ID()))) > 0
	})
	if c := nd.Counts(); c.Refused[report.RefusedAnnouncer] != 1 || c.Refused[report.RefusedFull] != 0 || c.NeverReached != 0 {
		t.Errorf("the refusal is not counted: %+v", c)
	}
	a := good.store.Add("docker.io/library/good:1", blob(2, 1<<10), 256<<10)
	announce(t, good, a)
	nd.holds(t, a)
	if _, err := nd.Images(t.Context(), testRef); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is in the catalog: %v", err)
	}
	if have, err := nd.store.List(t.Context()); err != nil || have[testRef] != "" {
		t.Errorf("it is here: %v %v", have, err)
	}
	if got := log.lines("announcer=" + string(rogue.ID())); len(got) != 1 {
		t.Errorf("the log names the announcer %d times, want once", len(got))
	}
}

// TestNewIdentityIsReported: a node that comes back as another one under its name
// is shown as that one, and the log has both ids, once.
func TestNewIdentityIsReported(t *testing.T) {
	t.Parallel()
	first := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	log := first.record(t)
	first.open(t)
	nd := newTestNode(t, "n1", trust.GenerateSecret(), []string{first.addr})
	nd.cfg.Secrets = first.cfg.Secrets
	nd.open(t)
	shown := func() string {
		for _, m := range first.Members().Members {
			if m.Name == "n1" && m.State == "alive" {
				return m.ID
			}
		}
		return ""
	}
	first.waitFor(t, "the first id", func() bool { return shown() == string(nd.ID()) })
	before := nd.ID()
	nd.close(t)
	nd.open(t) // the same one comes back: nothing to report
	first.waitFor(t, "the first id again", func() bool { return shown() == string(before) })
	nd.close(t)
	nd.cfg.DataDir = t.TempDir()
	nd.open(t)
	first.waitFor(t, "the second id", func() bool { return shown() == string(nd.ID()) })
	first.waitFor(t, "the line of the log", func() bool { return len(log.lines("new identity")) > 0 }) // written after the id is shown
	got := log.lines("new identity")
	if len(got) != 1 || !strings.Contains(got[0], string(before)) || !strings.Contains(got[0], string(nd.ID())) || !strings.Contains(got[0], "level=WARN") {
		t.Errorf("reported %q, want one line with %s and %s", got, before, nd.ID())
	}
}

func TestAcceptExcludes(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 1)
	picky := newTestNode(t, "picky", trust.GenerateSecret(), []string{nodes[0].addr})
	picky.cfg.Secrets, picky.cfg.Accept = nodes[0].cfg.Secrets, patterns(t, "other-*")
	picky.open(t)
	announce(t, nodes[0], nodes[0].store.Add(testRef, blob(1, 1<<10), 256<<10))
	nodes[0].waitFor(t, "excluded with the rule", func() bool {
		imgs, _ := nodes[0].Images(t.Context(), testRef)
		if len(imgs.Images) != 1 || len(imgs.Images[0].Nodes) != 2 {
			return false
		}
		c := imgs.Images[0].Nodes[1]
		return c.State == report.Excluded && strings.Contains(c.Reason, "other-*") && imgs.Images[0].Total == 1
	})
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nd := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	nd.cfg.TransferBind = l.Addr().String()
	err = p2p.New(nd.cfg, nd.store).Open(t.Context())
	if err == nil || !strings.Contains(err.Error(), "transfer.bind") || !strings.Contains(err.Error(), nd.cfg.TransferBind) {
		t.Fatalf("got %v, want an error that names transfer.bind and the address", err)
	}
}

func TestDataDirNotWritable(t *testing.T) {
	t.Parallel()
	nd := newTestNode(t, "n0", trust.GenerateSecret(), nil)
	nd.cfg.DataDir = filepath.Join(nd.cfg.DataDir, "not-there")
	if err := p2p.New(nd.cfg, nd.store).Open(t.Context()); err == nil || !strings.Contains(err.Error(), nd.cfg.DataDir) {
		t.Fatalf("got %v, want an error that names %s", err, nd.cfg.DataDir)
	}
}
