// Package gossip knows who is in the cluster and spreads hints that something
// changed.
//
// It runs memberlist, behind the wall that package wall is. It owns membership, which of
// memberlist's members are one node, the move to another address, the node metadata, the
// encoding of everything that gossip carries, and the loop that joins and joins again. It
// never carries an announcement itself, nor who holds what: gossip moves a few dozen small
// messages a second in a large cluster, so it says where there is something to pull.
//
// Invariant: nothing that arrives here changes any state but membership; a hint is bounded,
// decoded, handed over, and dropped where the reader is behind. memberlist's callbacks copy
// and hand over; they never block and never call back into memberlist.
//
// Locks, from the outside in: memberlist's own, gate.mu, then one of members.mu, site.mu,
// ranks.mu and joiner.mu, which never nest. No function of Config but OnMember is called
// under one of them.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/internal/wait"
	"seeder/p2p/gossip/wall"
	"seeder/p2p/netaddr"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// Config is what gossip needs. The callbacks are called from one goroutine of
// this package, one at a time.
type Config struct {
	NodeName string
	BindAddr string          // ip:port
	Join     func() []string // host[:port] of transfer ports; asked again at each try
	JoinPort int             // where Join names none
	Keys     [][]byte        // 32 bytes each, the one to seal with first
	Meta     Meta
	Identity *trust.Identity // signs what this node says of itself; its id is that of Meta
	// Advertise chooses the address at which others reach this node, given those of the
	// members that are known; nil: that of BindAddr. AdvertisePort is the port there; 0:
	// that of BindAddr.
	Advertise     func(ctx context.Context, known []netip.Addr) (netaddr.Choice, error)
	AdvertisePort int
	// Changes wakes up when another address may be chosen; the channel closes when ctx ends.
	// It is also polled. Nil, or Advertise is nil: never.
	Changes   func(ctx context.Context) (<-chan struct{}, error)
	PeersFile string // members known from earlier runs, for joining again

	// Listen opens the socket for packets; nil: UDP.
	Listen func(addr string) (net.PacketConn, error)
	// Dial opens a stream to another member; those that others open come by Serve.
	Dial Dial

	Log *slog.Logger

	OnHint func(Hint)
	// OnMoved is called when this node or another one has another address than before, with
	// its transfer address until then, host:port.
	OnMoved   func(member, before string)
	OnCatalog func(member string, hash uint64) // a member's catalog is other than ours, as far as gossip knows
	// OnMember is called when another member comes or goes, with its new state and why
	// this node cannot talk to it. Unlike the others it is called under memberlist's
	// lock, by whichever goroutine: it must not block, nor call Gossip.
	OnMember func(name, state, reason string)
}

// The states of a member. memberlist does not tell a suspect from an alive
// member; one that is suspected long enough is dead.
const (
	StateAlive = "alive"
	StateDead  = "dead"
	StateLeft  = "left"
)

// Member is a node as gossip knows it.
type Member struct {
	Name    string
	Address string // transfer address, host:port
	State   string
	Reason  string // why this node cannot talk to it, empty where it can
	Fix     string // what to do about Reason
	Version string
	// Protocols are those that it says it speaks; zero: it was not seen since this node
	// runs, or says nothing that can be read.
	Protocols Protocols
	ID        trust.NodeID
	Since     time.Time // when it came into this state, as far as this node saw

	gossip   string   // gossip address, ip:port
	instance instance // what memberlist knows it by; zero: this node never saw it
	word
	standing
}

// word is what a member says of itself.
type word struct {
	told    string // its metadata as it came
	proven  proven // whether the node says itself what told has
	leaving bool   // it said that it was leaving
	second  bool   // it said that another host has its name or identity
}

// standing is what this node thinks of a member.
type standing struct {
	contact contact
	owner   owner
	voucher trust.NodeID // the identity on whose word it counts as dead; empty: this node's own
	order   int          // in which instances were seen
}

const (
	// maxEvents is how many hints and summaries wait to be handed over.
	maxEvents = 1024
	// summaryInterval is how often a node tells one other member what its catalog
	// is, so that who has missed a hint hears of it from the first of those that
	// happen to tell him. It is a packet to one member: in the metadata, which every
	// node spreads, an announcement made as many broadcasts as there are nodes, and
	// the hint of the next one waited behind them (6 s with 200 nodes, against 1).
	summaryInterval = 5 * time.Second
	// spreadAsIf is how many nodes there are for a hint at least. Up to 9 each node
	// passes it on four times to members chosen by chance, and one announcement in ten
	// missed somebody; from 10 it is eight times.
	spreadAsIf = 10
	// leaveTimeout bounds the farewell.
	leaveTimeout = 2 * time.Second
)

// Gossip is this node's membership, and what its parts have in common. New starts nothing.
type Gossip struct {
	arrivals // the probes that came

	cfg     Config
	log     *slog.Logger
	wall    *wall.Wall
	members *members

	site   site   // this node as memberlist runs it
	joiner joiner // who joins those that are missing
	ranks  ranks  // which of two hosts that cannot be told apart is the second
	roster roster // the file of known members
	news   news   // what spreads
	gate   gate   // memberlist's callbacks go through it

	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed sync.Once
}

// New returns gossip that is not open yet.
func New(cfg Config) *Gossip {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Join == nil {
		cfg.Join = func() []string { return nil }
	}
	g := &Gossip{cfg: cfg, log: cfg.Log, members: newMembers(newInstance(cfg.NodeName))}
	g.site = site{g: g, meta: cfg.Meta, renewal: wait.NewSignal(), lines: wall.NewLogWriter(cfg.Log.With("component", "memberlist"))}
	g.joiner.g = g
	g.ranks = ranks{g: g, byProcess: map[string]bool{}, reconsider: wait.NewSignal()}
	g.roster = roster{g: g, parted: wait.NewSignal()}
	g.news = news{g: g, events: make(chan event, maxEvents)}
	g.wall = g.newWall()
	return g
}

// Open listens and starts to join. It waits for no other member.
func (g *Gossip) Open(ctx context.Context) (err error) {
	if name := g.cfg.NodeName; !wall.ValidName(name) || len(name)+suffixBytes > wall.MaxNameBytes {
		return fmt.Errorf("node name %q is empty, longer than %d bytes or not printable", name, wall.MaxNameBytes-suffixBytes)
	}
	if err = g.wall.SetKeys(g.cfg.Keys); err != nil {
		return err
	}
	ctx, g.cancel = context.WithCancel(ctx)
	g.roster.known = g.roster.loadPeers()
	g.news.queue = &memberlist.TransmitLimitedQueue{
		NumNodes:       func() int { return max(g.members.aliveCount(), spreadAsIf) },
		RetransmitMult: memberlist.DefaultLANConfig().RetransmitMult,
	}
	if err := g.site.start(ctx, g.site.choose(ctx)); err != nil {
		g.cancel()
		return err
	}
	g.wg.Go(func() { g.news.deliver(ctx) })
	g.wg.Go(func() { g.news.sendSummary(ctx) })
	g.wg.Go(func() { g.joiner.rejoin(ctx) })
	g.wg.Go(func() { g.reach(ctx) })
	g.wg.Go(func() { g.ranks.rank(ctx) })
	g.wg.Go(func() { g.site.follow(ctx) })
	return nil
}

// Serve takes a stream that another member opened, after a handshake that proved
// that it has the secret. It returns when the stream has ended, and closes conn.
func (g *Gossip) Serve(conn net.Conn) {
	if t := g.site.transport.Load(); t != nil {
		t.Serve(conn)
	} else {
		conn.Close()
	}
}

// Strange books a host whose handshake failed because its secret differs.
func (g *Gossip) Strange(from net.Addr) { g.wall.Strange(from) }

// Strangers are the hosts that tried to connect since some time with a secret that
// this node does not have, the last first.
func (g *Gossip) Strangers(since time.Time) []report.Stranger { return g.wall.Strangers(since) }

// SetKeys replaces the keys of packets, 32 bytes each: the first seals, all open.
func (g *Gossip) SetKeys(keys [][]byte) error { return g.wall.SetKeys(keys) }

// splitAddr splits host[:port], with a default for the port.
func splitAddr(addr string, defaultPort int) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return addr, defaultPort, nil // no port
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%q has no port between 0 and 65535", addr)
	}
	return host, port, nil
}

// Broadcast spreads a hint. A newer one about the same reference takes the place
// of one that is still being spread.
func (g *Gossip) Broadcast(h Hint) {
	b, err := h.encode()
	if err != nil {
		g.log.Warn("failed to send a hint", "ref", h.Reference, "err", err)
		return
	}
	g.news.queue.QueueBroadcast(&broadcast{name: "hint " + h.Reference, msg: b})
	g.news.sendDirect(b)
}

// SetCatalog says what this node's catalog is now.
func (g *Gossip) SetCatalog(hash uint64) { g.news.catalogHash.Store(hash) }

// Members are all members by name: alive ones, those that died in the last three days
// and were not forgotten, and those that left in the last day.
func (g *Gossip) Members() []Member { return g.members.list() }

// Alive are the alive members, this node among them.
func (g *Gossip) Alive() []Member {
	return slices.DeleteFunc(g.members.list(), func(m Member) bool { return m.State != StateAlive })
}

// Peers are the alive members that this node can talk to, this node among them.
func (g *Gossip) Peers() []Member {
	return slices.DeleteFunc(g.Alive(), func(m Member) bool { return m.Reason != "" })
}

// Status says whether another member is alive, and what became of the last try to
// join those that are missing: errors.Is trust.ErrSecretsDiffer where that is it. A host
// without an address that others reach has joined nobody.
func (g *Gossip) Status() (joined bool, failed error) {
	if none := g.site.homeless(); none != nil {
		return false, none
	}
	_, failed = g.joiner.last()
	return g.members.aliveCount() > 1, failed
}

// NoAddress is why this host has no address that others reach, nil where it has one.
func (g *Gossip) NoAddress() error { return g.site.homeless() }

// FailedSince is since when the cluster cannot be joined; zero: the last try went well.
func (g *Gossip) FailedSince() time.Time {
	since, _ := g.joiner.last()
	return since
}

// Close says farewell, so that the others need not find out, and waits for every
// goroutine of this package. It may be called more than once.
func (g *Gossip) Close() (err error) {
	if g.site.list.Load() != nil {
		g.closed.Do(func() { err = g.leave() })
	}
	return err
}

// tellOfSelf has memberlist tell the others what this node is now. Nobody waits until it has
// gone out: that takes long where many members are told of, and no context ends it.
func tellOfSelf(list *memberlist.Memberlist) { _ = list.UpdateNode(time.Nanosecond) }

func (g *Gossip) leave() error {
	g.site.setLeaving()
	g.cancel()
	// A join that is under way ends first: the other side may have taken this node in
	// already, and hears the farewell only if this node knows it.
	cut := time.AfterFunc(leaveTimeout, func() { g.site.transport.Load().Cut() })
	g.wg.Wait()
	cut.Stop()
	g.roster.savePeers()
	list := g.site.list.Load()
	if g.members.aliveCount() > 1 {
		_ = list.UpdateNode(leaveTimeout / 2) // best effort: the others find out anyway
		if err := list.Leave(leaveTimeout); err != nil {
			g.log.Debug("failed to leave the cluster cleanly", "err", err)
		}
	}
	err := list.Shutdown()
	g.gate.close() // memberlist's timers of suspicion outlive its Shutdown
	g.site.lines.Close()
	if err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}
