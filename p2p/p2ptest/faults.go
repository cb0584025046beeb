package p2ptest

import (
	"cmp"
	"slices"
	"time"
)

// Link is what one direction between two hosts does to packets besides the network's
// own latency and loss. Of a connection nothing comes twice or out of order: it is
// only later.
type Link struct {
	Loss, Twice   float64       // shares of packets, 0 to 1
	Delay, Jitter time.Duration // Jitter is the most that is added by chance: packets overtake each other
	BytesPerSec   int64         // of each connection; 0: as many as there are
}

// SetLink makes all ways from one of those hosts to one of these links like l; the
// zero Link ends that.
func (n *Network) SetLink(from, to []*Host, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range from {
		for _, b := range to {
			if l == (Link{}) {
				delete(n.links, path{a.addr(), b.addr()})
				continue
			}
			n.links[path{a.addr(), b.addr()}] = l
		}
	}
}

// Uncut ends what Cut did.
func (n *Network) Uncut(from, to []*Host) {
	n.mu.Lock()
	for _, a := range from {
		for _, b := range to {
			delete(n.cut, path{a.addr(), b.addr()})
		}
	}
	conns := n.openConns("")
	n.mu.Unlock()
	for _, c := range conns {
		c.in.wake()
	}
}

// takes is how long so many bytes of one connection need on p, where that is narrow.
func (n *Network) takes(p path, bytes int) (d time.Duration, narrow bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[p]
	if l.BytesPerSec == 0 {
		return 0, false
	}
	return time.Duration(float64(bytes) / float64(l.BytesPerSec) * float64(time.Second)), true
}

// copies is how often a packet is sent.
func (n *Network) copies(p path) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.links[p]; l.Twice > 0 && n.rng.Float64() < l.Twice {
		return 2
	}
	return 1
}

// Lose makes one connection of h a half-open one: neither end hears of the other any
// more, and neither is told. It chooses by pick, and reports whether there was one.
func (h *Host) Lose(pick uint64) bool {
	h.net.mu.Lock()
	var mine []*conn
	for _, c := range h.net.openConns(h.addr()) {
		if c.owner == h {
			mine = append(mine, c)
		}
	}
	h.net.mu.Unlock()
	if len(mine) == 0 {
		return false
	}
	slices.SortFunc(mine, func(a, b *conn) int { return cmp.Compare(a.number, b.number) })
	c := mine[pick%uint64(len(mine))]
	c.in.lose()
	c.out.lose()
	return true
}

func (h *half) lose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = true
}

func (h *half) crash() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead = true
	h.cond.Broadcast()
}

// Crash ends what runs on h as a power cut does: its connections are gone for it, the
// others are told nothing, and whatever it still does reaches nobody. It returns the
// same machine for when it is started again, not up yet; the other ends of the old
// connections are told once it is.
func (h *Host) Crash() *Host {
	n := h.net
	again := n.Host(h.addr())
	n.mu.Lock()
	again.up, h.up, h.gone = false, false, true
	conns := n.openConns(h.addr())
	n.mu.Unlock()
	for _, c := range conns {
		if c.owner == h {
			c.out.lose()
			c.in.crash()
		}
	}
	return again
}

func (h *Host) isGone() bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.gone
}
