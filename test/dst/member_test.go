package dst

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/p2ptest"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
	"seeder/store/chunk"
)

// The hostile kinds: a member that has the secret and runs another program, and hosts
// that do not have it. Each comes, does what it does, and goes without a word.
var memberKinds = []kind{
	{name: "sends zeros", group: members, weight: 2, begin: hostile(tricks{zeros: true})},
	{name: "answers nothing", group: members, weight: 2, begin: hostile(tricks{mute: true})},
	{name: "wrong lists of holders", group: members, weight: 2, begin: hostile(tricks{zeros: true, lies: true})},
	{name: "hints of nothing", group: members, weight: 2, begin: hostile(tricks{hints: true})},
	{name: "junk catalog", group: members, weight: 2, begin: hostile(tricks{junk: true})},
	{name: "wrong seed indexes", group: members, weight: 2, begin: hostile(tricks{seeds: true})},
	{name: "wrong clock", group: members, weight: 2, begin: hostile(tricks{clock: true})},
	{name: "junk without the secret", group: members, weight: 2, begin: stranger},
	{name: "another secret", group: members, weight: 2, begin: hostile(tricks{stranger: true})},
}

// tricks are what a villain does.
type tricks struct{ zeros, mute, lies, hints, junk, seeds, clock, stranger, ghosts bool }

// villain is a member that does not behave.
type villain struct {
	tricks

	c      *cluster
	name   string
	host   *p2ptest.Host
	id     *trust.Identity
	gossip *gossip.Gossip
	rng    *rand.Rand
	known  map[string]catalog.Record // what it was there for
	rngMu  sync.Mutex
}

// hostile lets a villain join for as long as the event says.
func hostile(t tricks) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(c *cluster, _ *machine, e Event) (func(), bool) {
		v := &villain{
			tricks: t, c: c, rng: rand.New(rand.NewPCG(e.Arg, 5)), known: c.newest(),
		}
		if t.clock { // it announces these again, perhaps after a withdrawal has purged them everywhere
			for _, rec := range v.known {
				c.touched[rec.Announcement().Target.Digest.Encoded()] = true
			}
		}
		if t.ghosts {
			c.ghosts = time.Now().Add(time.Duration(e.For) * time.Millisecond)
		}
		c.villains++
		v.name = fmt.Sprintf("x%d", c.villains)
		v.host = c.net.Host(fmt.Sprintf("10.0.%d.%d", 1+c.villains/250, 1+c.villains%250))
		end, err := v.open()
		if err != nil {
			c.violation("harness: %s: %v", v.name, err)
			return nil, false
		}
		return end, true
	}
}

// open joins and begins to do harm; what it returns ends that.
func (v *villain) open() (end func(), err error) {
	if v.id, err = trust.LoadOrCreateIdentity(filepath.Join(v.c.base, v.name)); err != nil {
		return nil, err
	}
	secrets := v.c.secrets()
	if v.stranger {
		secrets = v.c.parse("d07b1f3c5e9a8842 the secret of another cluster")
	}
	creds, err := trust.NewCredentials(v.id, secrets)
	if err != nil {
		return nil, err
	}
	listener, err := v.host.Listen(v.host.IP() + ":" + transPort)
	if err != nil {
		return nil, err
	}
	client := wire.NewClient(wire.ClientConfig{Credentials: creds, DialContext: v.host.Dial})
	server := wire.NewServer(wire.ServerConfig{Credentials: creds, Handlers: wire.Handlers{Matrix: v, Catalog: v, Images: v, Owner: v, Prober: v}, Gossip: func(conn net.Conn) { v.gossip.Serve(conn) }})
	v.gossip = gossip.New(gossip.Config{
		NodeName: v.name, BindAddr: v.host.IP() + ":" + gossipPort, JoinPort: 7951, Keys: secrets.GossipKeys(),
		Join:   func() []string { return []string{v.c.machines[0].ip(), v.c.machines[1].ip()} },
		Listen: v.host.ListenPacket, Dial: client.DialGossip,
		Meta: gossip.Meta{ID: v.id.ID(), TransferAddress: listener.Addr().String(), Protocol: 1, Oldest: 1, Version: "hostile"},
	})
	ctx, cancel := context.WithCancel(context.Background())
	if err := v.gossip.Open(ctx); err != nil {
		cancel()
		return nil, errors.Join(err, listener.Close())
	}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	victim := v.c.machines[v.uint64()%uint64(len(v.c.machines))].ip() + ":" + transPort
	running.Go(func() {
		if v.ghosts {
			v.makeUp(ctx, client, victim)
		}
		v.harm(ctx)
	})
	return func() {
		v.host.Crash()
		cancel()
		v.c.zombies.Go(func() {
			_ = v.gossip.Close()
			_ = server.Close(ctx)
			client.Close()
			running.Wait()
		})
	}, nil
}

// harm is what a villain does without being asked.
func (v *villain) harm(ctx context.Context) {
	if v.junk || v.clock {
		v.gossip.SetCatalog(v.uint64()) // others ask what it has
	}
	for ctx.Err() == nil {
		if v.hints {
			ref := refs()[v.uint64()%uint64(len(refs()))]
			holder := v.name
			if v.uint64()%2 == 0 {
				holder = v.c.machines[0].name
			}
			v.gossip.Broadcast(gossip.Hint{Reference: ref, Digest: digest.FromString(fmt.Sprint(v.uint64())), Version: v.uint64(), Holder: holder})
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (v *villain) uint64() uint64 {
	v.rngMu.Lock()
	defer v.rngMu.Unlock()
	return v.rng.Uint64()
}

// hang waits for the end of the question, where the villain answers nothing.
func (v *villain) hang(ctx context.Context) {
	if v.mute {
		<-ctx.Done()
	}
}

var errNothing = errors.New("nothing")

func (v *villain) State(ctx context.Context, _ []string, _ []uint64) ([]byte, error) {
	v.hang(ctx)
	return bytes.Repeat([]byte(`{"images":[`), 1000), nil
}

func (v *villain) CatalogDiff(ctx context.Context, _ catalog.Buckets) (out [][]byte, err error) {
	v.hang(ctx)
	for _, ref := range sortedRefs(v.known) {
		rec := v.known[ref]
		if v.junk {
			b := bytes.Clone(rec.Encode())
			b[v.uint64()%uint64(len(b))] ^= 1
			out = append(out, b)
		}
		if a := rec.Announcement(); v.clock && !a.Withdrawn {
			a.Version, a.NodeName = a.Version+1, v.name
			a.AnnouncedAt = time.Now().AddDate(0, 0, 40-80*int(v.uint64()%2))
			signed, err := catalog.Sign(v.id, a)
			if err != nil {
				return nil, err
			}
			return [][]byte{signed.Encode()}, nil
		}
	}
	if v.junk {
		out = append(out, []byte("no record"), nil, bytes.Repeat([]byte{0xff}, 4096))
	}
	return out, nil
}

func (v *villain) Seed(ctx context.Context, _ digest.Digest) ([]byte, error) {
	v.hang(ctx)
	if v.seeds {
		return []byte(`{"target":"nothing"}`), nil
	}
	return nil, errNothing
}

func (v *villain) Swarm(ctx context.Context, _ digest.Digest) (swarm.Served, error) {
	v.hang(ctx)
	if v.zeros {
		return zeros{}, nil
	}
	return nil, errNothing
}

func (v *villain) Register(ctx context.Context, _ digest.Digest, _ string, _ swarm.Peer) (out []swarm.Peer) {
	v.hang(ctx)
	if v.lies {
		for _, m := range v.c.machines {
			out = append(out, swarm.Peer{Name: m.name, Address: v.host.IP() + ":" + transPort, Complete: true})
		}
	}
	return out
}

func (v *villain) Probe(ctx context.Context, _ string, _ wire.Nonce) (wire.Answer, error) {
	v.hang(ctx)
	return wire.Answer{}, errNothing
}

func (v *villain) Recheck(ctx context.Context, _ digest.Digest, _ int, _ string) error {
	v.hang(ctx)
	return errNothing
}

func (v *villain) Held(ctx context.Context, refs []string) ([]string, error) {
	v.hang(ctx)
	return refs, nil
}

// zeros is a swarm of which every chunk is zeros.
type zeros struct{}

func (zeros) Len() int { return 4 }

func (zeros) Haves(ctx context.Context, fn func(swarm.Haves) error) error {
	b := chunk.NewBitmap(4)
	for n := range 4 {
		b.Set(n)
	}
	if err := fn(swarm.Haves{Map: b, Complete: true}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (zeros) Chunk(_ context.Context, _ swarm.Requester, n int) (swarm.Outgoing, error) {
	const size = 300
	return swarm.Outgoing{N: n, Done: func() {}, Frame: chunk.Frame{
		Bytes: size, Payload: io.NopCloser(bytes.NewReader(make([]byte, size))),
	}}, nil
}

func (z zeros) Next(ctx context.Context, by swarm.Requester, want chunk.Bitmap) (swarm.Outgoing, error) {
	for n := range 4 {
		if want.Has(n) {
			return z.Chunk(ctx, by, n)
		}
	}
	return swarm.Outgoing{}, swarm.ErrNothing
}

// stranger sends junk to the ports of a host, and holds connections that say nothing.
func stranger(c *cluster, m *machine, e Event) (func(), bool) {
	c.villains++
	h := c.net.Host(fmt.Sprintf("10.0.%d.%d", 1+c.villains/250, 1+c.villains%250))
	socket, err := h.ListenPacket(h.IP() + ":" + gossipPort)
	if err != nil {
		return nil, false
	}
	to := m.ip()
	ctx, cancel := context.WithCancel(context.Background())
	c.zombies.Go(func() {
		rng := rand.New(rand.NewPCG(e.Arg, 6))
		var conns []net.Conn
		for ctx.Err() == nil {
			b := make([]byte, rng.IntN(1400))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			_, _ = socket.WriteTo(b, &net.UDPAddr{IP: net.ParseIP(to), Port: 7950})
			if conn, err := h.Dial(ctx, "tcp", net.JoinHostPort(to, transPort)); err == nil {
				if rng.IntN(2) == 0 {
					_, _ = conn.Write(b)
				}
				conns = append(conns, conn)
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		for _, conn := range conns {
			conn.Close()
		}
		socket.Close()
	})
	return cancel, true
}
