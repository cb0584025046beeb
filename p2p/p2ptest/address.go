package p2ptest

import (
	"context"
	"errors"
	"net/netip"

	"seeder/p2p/netaddr"
)

// SetIP gives the host another address, or none where ip is empty. Connections of the old
// one hang, as those of an address do that is gone; anyone who watches the host's addresses
// is told.
func (h *Host) SetIP(ip string) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.hosts[h.addr()] == h {
		delete(h.net.hosts, h.addr())
	}
	h.ip.Store(&ip)
	if ip != "" {
		h.net.hosts[ip] = h
	}
	for _, c := range h.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Advertise chooses the host's address: it is p2p.Config.Advertise.
func (h *Host) Advertise(context.Context, []netip.Addr) (netaddr.Choice, error) {
	addr, err := netip.ParseAddr(h.addr())
	if err != nil {
		return netaddr.Choice{}, errors.New("this host has no address")
	}
	return netaddr.Choice{Addr: addr, Interface: "eth0", Why: "it is the only one"}, nil
}

// Changes says when SetIP was called: it is p2p.Config.Changes.
func (h *Host) Changes(ctx context.Context) (<-chan struct{}, error) {
	c := make(chan struct{}, 1)
	h.net.mu.Lock()
	h.watchers = append(h.watchers, c)
	h.net.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.net.mu.Lock()
		defer h.net.mu.Unlock()
		for i, w := range h.watchers {
			if w == c {
				h.watchers = append(h.watchers[:i], h.watchers[i+1:]...)
				break
			}
		}
		close(c)
	})
	return c, nil
}
