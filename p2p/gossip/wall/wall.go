// Package wall stands between the network and memberlist.
//
// It owns the socket for packets and their seal, the streams and their frames, the filter
// for what memberlist cannot take, the incarnations that were said of members, and the list
// of hosts that have another secret. It never knows who is a member, nor what an identity
// is: it is handed names, compares them, and hands on what a stream says.
//
// Invariant: memberlist sees only what a member with an accepted secret sent, and of that
// only what it can take.
//
// Locks: Transport.mu, incarnations.mu and strangers.mu never nest. No function of Config is
// called under one of them.
package wall

import (
	"context"
	"log/slog"
	"net"
	"time"

	"seeder/internal/text"
	"seeder/p2p/report"
)

const (
	// MaxMetaBytes is memberlist's limit for a node's metadata.
	MaxMetaBytes = 512
	// MaxStateBytes bounds what a node says of itself in an exchange of states.
	MaxStateBytes = 64 << 10
	// MaxNameBytes bounds a node name, as DNS bounds a host name.
	MaxNameBytes = 128
)

// ValidName bounds a node name and keeps control characters off terminals.
func ValidName(s string) bool { return s != "" && text.Valid(s, MaxNameBytes) }

// Config is what a wall needs. The functions are called by several goroutines at once.
type Config struct {
	Log *slog.Logger
	// Listen opens the socket for packets; nil: UDP.
	Listen func(addr string) (net.PacketConn, error)
	// Dial connects to the transfer port at addr, host:port, and returns the identity that
	// the other side has proved. Nil: no stream can be opened.
	Dial func(ctx context.Context, addr string) (conn net.Conn, identity string, err error)
	// Identity is what the other side of a connection that it opened has proved; empty:
	// nothing.
	Identity func(net.Conn) string
	// Member is the transfer address, host:port, of the member that memberlist knows by a
	// name, and its identity. Each is empty where it has said none.
	Member func(name string) (addr, identity string, err error)
	// Proved is told whom a stream was opened to.
	Proved func(identity string)
	// Exchanged is told what an identity says of itself in an exchange of states: at most
	// MaxStateBytes.
	Exchanged func(by string, user []byte)
	// Outdone is told of a name of which so high an incarnation is claimed that it soon
	// could not be exceeded any more.
	Outdone func(name string)
}

// Wall is what the transports of a node have in common. It is safe for concurrent use.
type Wall struct {
	cfg       Config
	seal      sealer
	strangers *strangers
}

// New returns a wall without keys: SetKeys comes before Open.
func New(cfg Config) *Wall { return &Wall{cfg: cfg, strangers: newStrangers(cfg.Log)} }

// SetKeys replaces the keys of packets, 32 bytes each: the first seals, all open.
func (w *Wall) SetKeys(keys [][]byte) error { return w.seal.set(keys) }

// Open opens the socket for packets at addr, ip:port, and begins to read it. Streams are
// opened until ctx ends; Shutdown closes the transport.
func (w *Wall) Open(ctx context.Context, addr string) (*Transport, error) {
	listen := w.cfg.Listen
	if listen == nil {
		listen = func(addr string) (net.PacketConn, error) { return net.ListenPacket("udp", addr) }
	}
	packets, err := listen(addr)
	if err != nil {
		return nil, err
	}
	t := &Transport{wall: w, packets: packets, incarnations: incarnations{outdone: w.cfg.Outdone}}
	t.start(ctx)
	return t, nil
}

// Strange books a host whose handshake failed because its secret differs.
func (w *Wall) Strange(from net.Addr) { w.strangers.connected(hostOf(from)) }

// Strangers are the hosts that tried to connect since some time with a secret that this
// node does not have, the last first.
func (w *Wall) Strangers(since time.Time) []report.Stranger { return w.strangers.list(since) }
