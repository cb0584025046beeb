package gossip

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// TestReplays: packets that somebody recorded change nothing when they are sent
// again, also after those who sent them have started anew.
func TestReplays(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var recorded [][]byte
	record := func(c *Config) {
		c.Listen = func(addr string) (net.PacketConn, error) {
			p, err := net.ListenPacket("udp", addr)
			return recorder{p, func(b []byte) {
				mu.Lock()
				defer mu.Unlock()
				if len(recorded) < 500 {
					recorded = append(recorded, bytes.Clone(b))
				}
			}}, err
		}
	}
	a := start(t, "a", 7, record)
	b := start(t, "b", 7, record, a.addr)
	eventually(t, "they know each other", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.shut()
	eventually(t, "b has left", func() bool { return a.state("b") == StateLeft })
	b = startAt(t, "b", b.addr, b.cfg.Keys, nil, a.addr)
	eventually(t, "b is back", func() bool { return a.state("b") == StateAlive && len(b.Alive()) == 2 })
	mu.Lock()
	packets := recorded
	mu.Unlock()
	if len(packets) < 5 {
		t.Fatalf("only %d packets were recorded", len(packets))
	}
	for range 20 {
		for _, n := range []*node{a, b} {
			conn, err := net.Dial("udp", n.site.transport.Load().LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range packets {
				if _, err := conn.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
		}
		if a.state("b") != StateAlive || b.state("a") != StateAlive {
			t.Fatalf("a replay changed who is alive: %+v %+v", a.Members(), b.Members())
		}
	}
	// Both still hear of each other what is new.
	a.SetCatalog(9)
	eventually(t, "b hears of a's catalog", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.diffs) > 0
	})
}

type recorder struct {
	net.PacketConn
	note func([]byte)
}

func (r recorder) WriteTo(b []byte, to net.Addr) (int, error) {
	r.note(b)
	return r.PacketConn.WriteTo(b, to)
}
