package gossip

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"seeder/internal/disk"
	"seeder/internal/text"
	"seeder/internal/wait"
	"seeder/p2p/gossip/wall"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

const (
	// maxPeersBytes bounds the file of known members.
	maxPeersBytes = 1 << 20
	maxPeers      = 1024
)

// known is a member as the file of known members has it.
type known struct {
	Name    string       `json:"name"`
	Gossip  string       `json:"gossip"`  // ip:port
	Address string       `json:"address"` // transfer address, host:port
	Version string       `json:"version"`
	ID      trust.NodeID `json:"id,omitempty"`
	Dead    time.Time    `json:"dead_since,omitzero"` // one of both, or none: it was alive
	Left    time.Time    `json:"left_since,omitzero"`
	Voucher trust.NodeID `json:"told_by,omitempty"` // on whose word it is dead
	// Instance is the last that this node saw of it, Farewell the metadata with which that left.
	Instance string `json:"instance,omitempty"`
	Farewell []byte `json:"farewell,omitempty"`
}

// valid reports whether k may be shown and dialled: the file is this node's own, but
// anybody may have edited it.
func (k known) valid() bool {
	host, _, err := net.SplitHostPort(k.Gossip)
	if err != nil || net.ParseIP(host) == nil || !wall.ValidName(k.Name) || !text.Valid(k.Version, wall.MaxMetaBytes) || !text.Valid(k.Address, wall.MaxMetaBytes) {
		return false
	}
	_, err = trust.ParseNodeID(string(k.ID))
	return k.ID == "" || err == nil
}

// roster is the file of known members. known is of Open, saved of the loop that writes it.
type roster struct {
	g      *Gossip
	parted wait.Signal // a member has left: its farewell is saved at once
	known  []string    // gossip addresses that the file had when this node was opened
	saved  []byte      // what the file has
}

// loadPeers takes the members that were known when this node last ran as dead ones,
// until they are heard of: they belong to the cluster, but for those that had left. It
// returns the addresses of all at which they can be joined.
func (r *roster) loadPeers() (addresses []string) {
	if r.g.cfg.PeersFile == "" {
		return nil
	}
	b, err := readPeers(r.g.cfg.PeersFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	peers, derr := decodePeersFile(b)
	if err := cmp.Or(err, derr); err != nil {
		r.g.log.Warn("ignored the file of known members: it is damaged", "path", r.g.cfg.PeersFile, "err", err)
	}
	r.g.members.restore(peers, time.Now())
	for _, k := range peers {
		if k.Voucher != "" {
			continue
		}
		addresses = append(addresses, Member{Address: k.Address, gossip: k.Gossip}.joinAddress())
	}
	return addresses
}

// decodePeersFile reads what savePeers wrote; what is not valid is left out.
func decodePeersFile(b []byte) ([]known, error) {
	var peers []known
	if err := json.Unmarshal(b, &peers); err != nil {
		return nil, err
	}
	peers = peers[:min(len(peers), maxPeers)]
	return slices.DeleteFunc(peers, func(k known) bool { return !k.valid() }), nil
}

func readPeers(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPeersBytes))
}

// savePeers writes the other members, so that a node without join addresses finds its
// cluster again, and knows after a restart who is missing. Losing the file loses only
// that.
func (r *roster) savePeers() {
	if r.g.cfg.PeersFile == "" {
		return
	}
	peers := []known{}
	list, farewells := r.g.members.named(), map[string][]byte{}
	for _, f := range r.g.members.farewells(time.Now()) {
		farewells[f.Instance] = f.Meta
	}
	slices.SortStableFunc(list, func(a, b Member) int { return compare(a.voucher != "", b.voucher != "") })
	for _, m := range list {
		if m.Name == r.g.cfg.NodeName || len(peers) == maxPeers {
			continue
		}
		k := known{Name: m.Name, Gossip: m.gossip, Address: m.Address, Version: m.Version, ID: m.ID, Voucher: m.voucher}
		if m.instance != (instance{}) {
			k.Instance = m.instance.String()
		}
		switch since := m.Since.UTC().Truncate(time.Second); m.State {
		case StateDead:
			k.Dead = since
		case StateLeft:
			k.Left, k.Farewell = since, farewells[k.Instance]
		}
		peers = append(peers, k)
	}
	if len(peers) == 0 {
		return // what was known before is worth more
	}
	b, err := json.Marshal(peers)
	if err == nil {
		err = r.writePeers(b)
	}
	if err != nil {
		r.g.log.Warn("failed to write the file of known members", "err", err)
	}
}

// writePeers writes the file where its content is another one than before: each
// time costs two syncs.
func (r *roster) writePeers(b []byte) error {
	if bytes.Equal(b, r.saved) {
		return nil
	}
	if err := disk.WriteFile(r.g.cfg.PeersFile, b); err != nil {
		return err
	}
	r.saved = b
	return nil
}

// Forget drops a member that is dead or has left, here and, by gossip, on every node
// that is there: nobody waits for it any more. One that comes back is a member again.
func (g *Gossip) Forget(name string) error {
	if err := g.members.forget(name); err != nil {
		return err
	}
	g.news.queue.QueueBroadcast(&broadcast{name: "forget " + name, msg: append([]byte{forgetKind}, name...)})
	return nil
}

// decodeForget reads the message by which a member is forgotten.
func decodeForget(msg []byte) (name string, err error) {
	if len(msg) < 2 || msg[0] != forgetKind || !wall.ValidName(string(msg[1:])) {
		return "", fmt.Errorf("forget message of %d bytes without a valid name", len(msg))
	}
	return string(msg[1:]), nil
}

// forget drops a member that is not alive.
func (ms *members) forget(name string) error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.byName[name]
	if m == nil || m.State != StateAlive {
		ms.forgotten.add(name, time.Now())
	}
	switch {
	case m == nil:
		var gone []string
		for _, o := range ms.byName {
			if o.State != StateAlive {
				gone = append(gone, o.Name)
			}
		}
		slices.Sort(gone)
		if len(gone) == 0 {
			return fmt.Errorf("%w: no member is called %q, and none is away", report.ErrNotForgotten, name)
		}
		return fmt.Errorf("%w: no member is called %q; away are %s", report.ErrNotForgotten, name, strings.Join(gone, ", "))
	case m.State == StateAlive:
		return fmt.Errorf("%w: %s is alive; stop seeder there first", report.ErrNotForgotten, name)
	}
	delete(ms.byName, name)
	return nil
}

// restore adds members of an earlier run as dead ones, unless they are known already.
func (ms *members) restore(list []known, now time.Time) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, k := range list {
		if ms.byName[k.Name] != nil || k.Name == ms.self.node {
			continue
		}
		m := &Member{Name: k.Name, Address: k.Address, State: StateDead, Version: k.Version, ID: k.ID, Since: k.Dead, gossip: k.Gossip, standing: standing{voucher: k.Voucher}}
		if !k.Left.IsZero() {
			m.State, m.Since = StateLeft, k.Left
		}
		if i, err := parseInstance(k.Instance); err == nil && i.node == k.Name && len(k.Farewell) <= wall.MaxMetaBytes {
			m.instance, m.told = i, string(k.Farewell)
		}
		if m.Since.IsZero() || m.Since.After(now) {
			m.Since = now // it may have gone while this node was away
		}
		ms.byName[k.Name] = m
	}
	ms.forgetLocked(now)
}
