package gossip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// probeKind is the first byte of a probe: a message that says nothing and is only
// noted where it arrives, so that two nodes that reach each other on the transfer
// port can tell which direction gossip's packets do not pass. Nodes that do not
// know the kind drop it.
const probeKind = 3

const (
	// largeProbeBytes makes a packet of what memberlist fills its own up to (1,400
	// bytes), sealed.
	largeProbeBytes = 1350
	// probeCopies is how often each is sent: a packet may be lost by chance.
	probeCopies = 3
	// maxArrivals bounds how many probes are remembered.
	maxArrivals = 512
)

// Nonce names one probe.
type Nonce [16]byte

// NewNonce returns one that nobody else uses.
func NewNonce() Nonce {
	var n Nonce
	rand.Read(n[:]) // never fails (crypto/rand since Go 1.24)
	return n
}

// arrivals are the probes that came, safe for concurrent use. The oldest is
// forgotten first.
type arrivals struct {
	mu      sync.Mutex
	order   []Nonce
	byNonce map[Nonce]*arrival
}

type arrival struct{ small, large bool }

// record keeps a probe as it came: the kind, the nonce, and for the large one zeros.
func (a *arrivals) record(msg []byte) {
	var n Nonce
	if len(msg) < 1+len(n) || len(msg) > largeProbeBytes {
		return
	}
	copy(n[:], msg[1:])
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byNonce == nil {
		a.byNonce = map[Nonce]*arrival{}
	}
	got := a.byNonce[n]
	if got == nil {
		if len(a.order) == maxArrivals {
			delete(a.byNonce, a.order[0])
			a.order = slices.Delete(a.order, 0, 1)
		}
		got = &arrival{}
		a.byNonce[n], a.order = got, append(a.order, n)
	}
	if len(msg) == largeProbeBytes {
		got.large = true
	} else {
		got.small = true
	}
}

// Arrived says which of the two sizes of a probe have come by packet.
func (a *arrivals) Arrived(n Nonce) (small, large bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := a.byNonce[n]; got != nil {
		return got.small, got.large
	}
	return false, false
}

// arrivalPoll is how often AwaitArrival looks: it is asked for seldom, and a packet
// is either there within milliseconds or lost.
const arrivalPoll = 20 * time.Millisecond

// AwaitArrival is Arrived once both sizes are here, or when ctx ends.
func (a *arrivals) AwaitArrival(ctx context.Context, n Nonce) (small, large bool) {
	tick := time.NewTicker(arrivalPoll)
	defer tick.Stop()
	for {
		if small, large = a.Arrived(n); small && large {
			return small, large
		}
		select {
		case <-ctx.Done():
			return a.Arrived(n)
		case <-tick.C:
		}
	}
}

// SendProbe sends a probe to a member by packet, in both sizes. Nothing says
// whether it arrives.
func (g *Gossip) SendProbe(member string, n Nonce) error {
	m, err := g.member(member)
	if err != nil {
		return err
	}
	small := append([]byte{probeKind}, n[:]...)
	large := append(slices.Clone(small), make([]byte, largeProbeBytes-len(small))...)
	to, list := m.to(), g.site.list.Load()
	var sent error
	for range probeCopies {
		// A message that is larger than the interface takes is an error here.
		sent = errors.Join(list.SendToAddress(to, small), list.SendToAddress(to, large))
	}
	return sent
}

// Ping sends a member a packet and waits for the answer to it, for half a second.
func (g *Gossip) Ping(member string) error {
	m, err := g.member(member)
	if err != nil {
		return err
	}
	return g.ping(m)
}

func (g *Gossip) ping(m Member) error {
	addr, err := net.ResolveUDPAddr("udp", m.gossip)
	if err != nil {
		return err
	}
	_, err = g.site.list.Load().Ping(m.instance.String(), addr)
	return err
}

// GossipAddress is where a member gossips, ip:port.
func (m Member) GossipAddress() string { return m.gossip }

func (g *Gossip) member(name string) (Member, error) {
	for _, m := range g.members.list() {
		if m.Name == name {
			return m, nil
		}
	}
	return Member{}, fmt.Errorf("unknown member %q", name)
}
