package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
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
	// moveTries is how often each of them is tried, moveAgain after the last time.
	moveTries = 3
	// moveAgain is when a new address is spread once more: each node passes news on some
	// eight times to members chosen by chance, which misses one member in 3,000.
	moveAgain = 2 * time.Second
	// forgetAfter is when those members count as dead that were alive at the old address of
	// this node and that nobody has told it of at the new one: gossip has told of all by
	// then, and finds a dead one sooner.
	forgetAfter = 15 * time.Second
)

// place is where this node is: the instance that memberlist runs as, at an address. Its
// owner is site.mu.
type place struct {
	instance instance
	address  netip.Addr // that others are told; invalid: that of BindAddr
	none     error      // why there is no address, then a placeholder is told to nobody
	port     uint16     // of that address
	since    time.Time
	swept    bool // what the memberlist before knew was compared with this one's
}

// site is this node as memberlist runs it: an instance at an address, behind the wall. What
// changes the address, or needs a new instance, puts another memberlist in the place of the
// one that runs.
type site struct {
	g         *Gossip
	list      atomic.Pointer[memberlist.Memberlist] // another one after each change of address
	transport atomic.Pointer[wall.Transport]        // of list
	lines     *wall.LogWriter                       // memberlist's
	renewal   wait.Signal                           // this node needs a new instance

	mu    sync.Mutex
	meta  Meta // what this node says of itself
	place place
}

// at is where this node is.
func (s *site) at() place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place
}

// said is what this node says of itself now.
func (s *site) said() Meta {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta
}

// setLeaving has this node say that it leaves.
func (s *site) setLeaving() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meta.Leaving = true
}

// setSecond has this node say whether it is the second of two hosts, and reports whether it
// said something else before.
func (s *site) setSecond(second bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = second != s.meta.Second
	s.meta.Second = second
	return changed
}

// placeholder stands where this host has no address that others could reach: it joins
// nobody until it has one.
var placeholder = netip.MustParseAddr("127.0.0.1")

// choose chooses the address to tell.
func (s *site) choose(ctx context.Context) place {
	if s.g.cfg.Advertise == nil {
		return place{}
	}
	c, err := s.g.cfg.Advertise(ctx, s.knownAddresses())
	if err != nil {
		return place{address: placeholder, none: fmt.Errorf("choose the address that other hosts reach: %w", err)}
	}
	last := s.at()
	if last.address != c.Addr || last.none != nil {
		s.g.log.Info("address chosen", "address", c.Addr, "interface", c.Interface, "reason", c.Why)
		if c.Doubt != "" {
			s.g.log.Warn("chose an address that may be wrong", "address", c.Addr, "reason", c.Doubt)
		}
	}
	return place{address: c.Addr}
}

// knownAddresses are those of the other members, alive or not.
func (s *site) knownAddresses() []netip.Addr {
	var out []netip.Addr
	for _, m := range s.g.members.list() {
		ap, err := netip.ParseAddrPort(m.gossip)
		if err == nil && m.Name != s.g.cfg.NodeName && m.Reason == "" && netaddr.Dialable(ap.Addr()) {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out
}

// start opens the socket and a memberlist at p, in the place of the one before.
func (s *site) start(ctx context.Context, p place) error {
	conf, err := s.config()
	if err != nil {
		return err
	}
	t, err := s.g.wall.Open(ctx, s.g.cfg.BindAddr)
	if err != nil {
		return s.explainListen(err)
	}
	conf.Transport = t
	if conf.BindPort == 0 {
		conf.BindPort = t.Port()
	}
	if conf.AdvertisePort = s.g.cfg.AdvertisePort; conf.AdvertisePort == 0 {
		conf.AdvertisePort = t.Port()
	}
	if p.address.IsValid() {
		conf.AdvertiseAddr = p.address.String()
	}
	s.mu.Lock()
	p.instance, p.port, p.since = s.g.members.self, uint16(conf.AdvertisePort), time.Now()
	if last := s.place.instance; last != (instance{}) {
		p.instance = last.next()
	}
	s.place = p
	s.mu.Unlock()
	d := &delegate{Gossip: s.g, of: p.instance, transport: t}
	conf.Name, conf.Delegate, conf.Events, conf.Conflict, conf.Alive = p.instance.String(), d, d, d, d
	list, err := memberlist.Create(conf)
	if err != nil {
		return errors.Join(fmt.Errorf("start memberlist: %w", err), t.Shutdown())
	}
	s.list.Store(list)
	s.transport.Store(t)
	if p.none != nil {
		s.g.log.Warn("found no address that other hosts can reach; this node is alone until there is one", "err", p.none)
	}
	return nil
}

// config is memberlist's LAN profile behind the wall: encryption and label are the
// transport's.
func (s *site) config() (*memberlist.Config, error) {
	host, port, err := splitAddr(s.g.cfg.BindAddr, 0)
	if err != nil {
		return nil, fmt.Errorf("gossip.bind: %w", err)
	}
	if _, err := s.said().encode(); err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	c.BindAddr, c.BindPort = host, port
	c.UDPBufferSize = wall.PacketBytes
	c.EnableCompression = false // digests only grow (LZW); the filter refuses it
	c.PushPullInterval = 30 * time.Second
	c.GossipToTheDeadTime = gossipToTheDead
	c.Logger = log.New(s.lines, "", 0)
	return c, nil
}

// follow chooses anew when something has changed, and now and then, and moves this node
// to the address that it finds, until ctx ends. It also renews the instance. Nobody else
// replaces the memberlist.
func (s *site) follow(ctx context.Context) {
	var events <-chan struct{}
	moves := s.g.cfg.Advertise != nil && s.g.cfg.Changes != nil
	if moves {
		var err error
		if events, err = s.g.cfg.Changes(ctx); err != nil {
			s.g.log.Warn("failed to watch this host's addresses; polling them instead", "interval", lookInterval, "err", err)
		}
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.renewal:
			s.renew(ctx)
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
			s.pollAddress(ctx)
			continue
		}
		last := s.at()
		s.sweep(last)
	}
}

// outdone asks for a new instance where the one that is named is this node's.
func (s *site) outdone(name string) {
	if name == s.at().instance.String() {
		s.renewal.Set()
	}
}

// renew replaces the instance at the address where it is, since a member claims an
// incarnation of it that it never had and soon could not exceed any more. The others take
// the new instance for this node; what is claimed of the old one means nothing then.
func (s *site) renew(ctx context.Context) {
	last := s.at()
	if pause := moveInterval - time.Since(last.since); pause > 0 && !wait.For(ctx, pause) {
		return
	}
	select {
	case <-s.renewal: // of the same instance
	default:
	}
	s.g.log.Warn("a member claims an incarnation of this node that it never had; gossip starts again under a new instance", "instance", last.instance)
	s.move(ctx, place{address: last.address, none: last.none})
}

// pollAddress moves this node where another address is chosen now. While there is none it stays
// where it is: nobody reaches it, and the address may come back. A look that failed says
// nothing.
func (s *site) pollAddress(ctx context.Context) {
	p := s.choose(ctx)
	s.mu.Lock()
	last := s.place
	if errors.Is(p.none, netaddr.ErrUnread) {
		s.g.log.Debug("keeping the address", "address", last.address, "err", p.none)
		p = last
	}
	if last.none == nil && p.none != nil {
		s.place.none = p.none
	}
	if p.none == nil && p.address == last.address {
		s.place.none = nil
	}
	s.mu.Unlock()
	switch {
	case p.none != nil && last.none == nil:
		s.g.log.Warn("lost the address that other hosts reach", "before", last.address, "err", p.none)
		s.g.joiner.recordJoin(ctx, p.none)
	case p.none == nil && p.address != last.address:
		if pause := moveInterval - time.Since(last.since); pause > 0 && !wait.For(ctx, pause) {
			return
		}
		s.move(ctx, p)
	case p.none == nil && last.none != nil:
		s.g.log.Info("the address of this host is back", "address", p.address)
		s.g.joiner.recordJoin(ctx, nil)
		s.meet(ctx)
	default:
		s.sweep(last)
	}
}

// move ends the memberlist at the old address and begins one at another. The other members
// hear of a new instance of this node, which takes the place of the one before at once;
// nobody says farewell, since nobody goes.
func (s *site) move(ctx context.Context, p place) {
	before := s.at().address
	if err := s.list.Load().Shutdown(); err != nil {
		s.g.log.Debug("failed to shut down the old memberlist", "err", err)
	}
	for {
		err := s.start(ctx, p)
		if err == nil {
			break
		}
		s.g.log.Error("failed to move gossip to a new address", "address", p.address, "err", err)
		if !wait.For(ctx, moveInterval) {
			return
		}
	}
	if before != p.address {
		s.g.log.Info("moved to a new address", "before", before, "address", p.address)
	}
	s.g.joiner.recordJoin(ctx, p.none)
	s.meet(ctx)
}

// meet tells some members of this node, each beside the others: some of them may be gone.
func (s *site) meet(ctx context.Context) {
	targets := s.g.joiner.missing(ctx, s.g.roster.known)
	for _, m := range s.g.members.list() {
		if m.State == StateAlive && m.Name != s.g.cfg.NodeName {
			targets = append(targets, m.joinAddress())
		}
	}
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	list := s.list.Load()
	for _, t := range targets[:min(moveJoins, len(targets))] {
		s.g.wg.Go(func() {
			for range moveTries { // the way may not be there as soon as the address is
				if s.g.joiner.join(ctx, []string{t}) == nil || !wait.For(ctx, moveAgain) || s.list.Load() != list {
					return
				}
			}
		})
	}
	s.g.wg.Go(func() {
		for range 2 {
			if !wait.For(ctx, moveAgain) || s.list.Load() != list {
				return
			}
			tellOfSelf(list)
		}
	})
}

// sweep ends the members that the memberlist before had alive and this one does not know.
func (s *site) sweep(p place) {
	if p.swept || p.instance.moved == 0 || time.Since(p.since) < forgetAfter {
		return
	}
	s.mu.Lock()
	s.place.swept = true
	s.mu.Unlock()
	there := map[string]bool{}
	for _, n := range s.list.Load().Members() {
		there[n.Name] = true
	}
	for _, i := range s.g.members.instances() {
		if !there[i.String()] {
			s.g.gone(i)
		}
	}
}

// homeless is why this node has no address to tell, nil where it has one.
func (s *site) homeless() error {
	return s.at().none
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

func (s *site) explainListen(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on gossip.bind %s: the port is in use by another process; set gossip.bind to a free port or stop that process (ss -lnup shows it)", s.g.cfg.BindAddr)
	}
	return fmt.Errorf("listen on gossip.bind %s: %w", s.g.cfg.BindAddr, err)
}
