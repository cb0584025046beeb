package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/internal/wait"
	"seeder/p2p/gossip/wall"
	"seeder/p2p/netaddr"
)

const (
	// settleTime is how long after an event it is looked which address there is: what
	// changes an address removes the old one first, or adds the new one.
	settleTime = 500 * time.Millisecond
	// lookInterval is how often it is looked without an event.
	lookInterval = 5 * time.Second
	// moveInterval is the least time between two changes of address.
	moveInterval = 2 * time.Second
	// moveJoins is how many members are told of a new address at once; they tell the rest.
	moveJoins = 6
	// moveAgain is when a new address is spread once more: each node passes news on some
	// eight times to members chosen by chance, which misses one member in 3,000.
	moveAgain = 2 * time.Second
	// forgetAfter is when those members count as dead that were alive at the old address of
	// this node and that nobody has told it of at the new one: gossip has told of all by
	// then, and finds a dead one sooner.
	forgetAfter = 15 * time.Second
)

// place is where this node is: the instance that memberlist runs as, at an address. Its
// owner is Gossip.mu.
type place struct {
	instance instance
	address  netip.Addr // that others are told; invalid: that of BindAddr
	none     error      // why there is no address, then a placeholder is told to nobody
	port     uint16     // of that address
	since    time.Time
	swept    bool // what the memberlist before knew was compared with this one's
}

// placeholder stands where this host has no address that others could reach: it joins
// nobody until it has one.
var placeholder = netip.MustParseAddr("127.0.0.1")

// choose chooses the address to tell.
func (g *Gossip) choose(ctx context.Context) place {
	if g.cfg.Advertise == nil {
		return place{}
	}
	c, err := g.cfg.Advertise(ctx, g.knownAddresses())
	if err != nil {
		return place{address: placeholder, none: fmt.Errorf("choose the address that other hosts reach: %w", err)}
	}
	g.mu.Lock()
	last := g.place
	g.mu.Unlock()
	if last.address != c.Addr || last.none != nil {
		g.log.Info("address chosen", "address", c.Addr, "interface", c.Interface, "reason", c.Why)
		if c.Doubt != "" {
			g.log.Warn("chose an address that may be wrong", "address", c.Addr, "reason", c.Doubt)
		}
	}
	return place{address: c.Addr}
}

// knownAddresses are those of the other members, alive or not.
func (g *Gossip) knownAddresses() []netip.Addr {
	var out []netip.Addr
	for _, m := range g.members.list() {
		ap, err := netip.ParseAddrPort(m.gossip)
		if err == nil && m.Name != g.cfg.NodeName && m.Reason == "" && netaddr.Dialable(ap.Addr()) {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out
}

// start opens the socket and a memberlist at p, in the place of the one before.
func (g *Gossip) start(ctx context.Context, p place) error {
	conf, err := g.config()
	if err != nil {
		return err
	}
	t, err := g.wall.Open(ctx, g.cfg.BindAddr)
	if err != nil {
		return g.explainListen(err)
	}
	conf.Transport = t
	if conf.BindPort == 0 {
		conf.BindPort = t.Port()
	}
	if conf.AdvertisePort = g.cfg.AdvertisePort; conf.AdvertisePort == 0 {
		conf.AdvertisePort = t.Port()
	}
	if p.address.IsValid() {
		conf.AdvertiseAddr = p.address.String()
	}
	g.mu.Lock()
	p.instance, p.port, p.since = g.members.self, uint16(conf.AdvertisePort), time.Now()
	if last := g.place.instance; last != (instance{}) {
		p.instance = last.next()
	}
	g.place = p
	g.mu.Unlock()
	d := &delegate{Gossip: g, of: p.instance, transport: t}
	conf.Name, conf.Delegate, conf.Events, conf.Conflict, conf.Alive = p.instance.String(), d, d, d, d
	list, err := memberlist.Create(conf)
	if err != nil {
		return errors.Join(fmt.Errorf("start memberlist: %w", err), t.Shutdown())
	}
	g.list.Store(list)
	g.transport.Store(t)
	if p.none != nil {
		g.log.Warn("found no address that other hosts can reach; this node is alone until there is one", "err", p.none)
	}
	return nil
}

// config is memberlist's LAN profile behind the wall: encryption and label are the
// transport's.
func (g *Gossip) config() (*memberlist.Config, error) {
	host, port, err := splitAddr(g.cfg.BindAddr, 0)
	if err != nil {
		return nil, fmt.Errorf("gossip.bind: %w", err)
	}
	if _, err := g.meta.encode(); err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.BindAddr, c.BindPort = host, port
	c.UDPBufferSize = wall.PacketBytes
	c.EnableCompression = false // digests only grow (LZW); the filter refuses it
	c.PushPullInterval = 30 * time.Second
	c.Logger = log.New(g.lines, "", 0)
	return c, nil
}

// follow chooses anew when something has changed, and now and then, and moves this node
// to the address that it finds, until ctx ends. It also renews the instance. Nobody else
// replaces the memberlist.
func (g *Gossip) follow(ctx context.Context) {
	var events <-chan struct{}
	moves := g.cfg.Advertise != nil && g.cfg.Changes != nil
	if moves {
		var err error
		if events, err = g.cfg.Changes(ctx); err != nil {
			g.log.Warn("failed to watch this host's addresses; polling them instead", "interval", lookInterval, "err", err)
		}
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.renewal:
			g.renew(ctx)
			continue
		case _, open := <-events:
			if !open {
				events = nil
			} else if !wait.For(ctx, settleTime) {
				return
			}
		case <-tick.C:
		}
		if moves {
			g.pollAddress(ctx)
			continue
		}
		g.mu.Lock()
		last := g.place
		g.mu.Unlock()
		g.sweep(last)
	}
}

// outdone asks for a new instance where the one that is named is this node's.
func (g *Gossip) outdone(name string) {
	g.mu.Lock()
	own := name == g.place.instance.String()
	g.mu.Unlock()
	if !own {
		return
	}
	select {
	case g.renewal <- struct{}{}:
	default:
	}
}

// renew replaces the instance at the address where it is, since a member claims an
// incarnation of it that it never had and soon could not exceed any more. The others take
// the new instance for this node; what is claimed of the old one means nothing then.
func (g *Gossip) renew(ctx context.Context) {
	g.mu.Lock()
	last := g.place
	g.mu.Unlock()
	if pause := moveInterval - time.Since(last.since); pause > 0 && !wait.For(ctx, pause) {
		return
	}
	select {
	case <-g.renewal: // of the same instance
	default:
	}
	g.log.Warn("a member claims an incarnation of this node that it never had; gossip starts again under a new instance", "instance", last.instance)
	g.move(ctx, place{address: last.address, none: last.none})
}

// pollAddress moves this node where another address is chosen now. While there is none it stays
// where it is: nobody reaches it, and the address may come back.
func (g *Gossip) pollAddress(ctx context.Context) {
	p := g.choose(ctx)
	g.mu.Lock()
	last := g.place
	if last.none == nil && p.none != nil {
		g.place.none = p.none
	}
	if p.none == nil && p.address == last.address {
		g.place.none = nil
	}
	g.mu.Unlock()
	switch {
	case p.none != nil && last.none == nil:
		g.log.Warn("lost the address that other hosts reach", "before", last.address, "err", p.none)
		g.recordJoin(ctx, p.none)
	case p.none == nil && p.address != last.address:
		if pause := moveInterval - time.Since(last.since); pause > 0 && !wait.For(ctx, pause) {
			return
		}
		g.move(ctx, p)
	case p.none == nil && last.none != nil:
		g.log.Info("the address of this host is back", "address", p.address)
		g.recordJoin(ctx, nil)
		g.meet(ctx)
	default:
		g.sweep(last)
	}
}

// move ends the memberlist at the old address and begins one at another. The other members
// hear of a new instance of this node, which takes the place of the one before at once;
// nobody says farewell, since nobody goes.
func (g *Gossip) move(ctx context.Context, p place) {
	g.mu.Lock()
	before := g.place.address
	g.mu.Unlock()
	if err := g.list.Load().Shutdown(); err != nil {
		g.log.Debug("failed to shut down the old memberlist", "err", err)
	}
	for {
		err := g.start(ctx, p)
		if err == nil {
			break
		}
		g.log.Error("failed to move gossip to a new address", "address", p.address, "err", err)
		if !wait.For(ctx, moveInterval) {
			return
		}
	}
	if before != p.address {
		g.log.Info("moved to a new address", "before", before, "address", p.address)
	}
	g.recordJoin(ctx, p.none)
	g.meet(ctx)
}

// meet tells some members of this node, each beside the others: some of them may be gone.
func (g *Gossip) meet(ctx context.Context) {
	targets := g.missing(ctx, g.known)
	for _, m := range g.members.list() {
		if m.State == StateAlive && m.Name != g.cfg.NodeName {
			targets = append(targets, m.joinAddress())
		}
	}
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	for _, t := range targets[:min(moveJoins, len(targets))] {
		g.wg.Go(func() { g.join(ctx, []string{t}) })
	}
	list := g.list.Load()
	g.wg.Go(func() {
		for range 2 {
			if !wait.For(ctx, moveAgain) || g.list.Load() != list {
				return
			}
			if err := list.UpdateNode(leaveTimeout); err != nil {
				g.log.Debug("failed to announce the new address again", "err", err)
			}
		}
	})
}

// sweep ends the members that the memberlist before had alive and this one does not know.
func (g *Gossip) sweep(p place) {
	if p.swept || p.instance.moved == 0 || time.Since(p.since) < forgetAfter {
		return
	}
	g.mu.Lock()
	g.place.swept = true
	g.mu.Unlock()
	there := map[string]bool{}
	for _, n := range g.list.Load().Members() {
		there[n.Name] = true
	}
	for _, i := range g.members.instances() {
		if !there[i.String()] {
			g.gone(i)
		}
	}
}

// homeless is why this node has no address to tell, nil where it has one.
func (g *Gossip) homeless() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.place.none
}

// to is where a member gets messages.
func (m Member) to() memberlist.Address {
	return memberlist.Address{Addr: m.gossip, Name: m.instance.String()}
}

// setAddress is what helps where a member tells a wrong one.
const setAddress = "on that host: set gossip.advertise to its address, then `systemctl restart seeder`"

// undialable says why no other host can reach a member at the address that it tells, empty
// where one can. Own is that of this node.
func undialable(n *memberlist.Node, own place) string {
	addr, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return "tells others an address that is not one"
	}
	switch here := own.address; {
	case !here.IsValid() || !netaddr.Dialable(here): // nodes on one host
		return ""
	case !netaddr.Dialable(addr):
		return "tells others the address " + addr.Unmap().String() + ", which no other host can reach"
	case addr.Unmap() == here && own.port == n.Port:
		return "tells others the address " + net.JoinHostPort(here.String(), fmt.Sprint(n.Port)) + ", which is this host's"
	}
	return ""
}
