package p2p_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"seeder/p2p/report"
)

// ghosts is an exchange of states, framed as on a stream, in which n members are alive
// that do not exist.
func ghosts(n int) []byte {
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := []byte{6, 0x83} // a push/pull; a map of three
	b = binary.BigEndian.AppendUint16(append(str(b, "Nodes"), 0xcd), uint16(n))
	b = append(str(b, "UserStateLen"), 0)
	b = append(str(b, "Join"), 0xc2)
	for i := range n {
		ip := string([]byte{10, 9, byte(i >> 8), byte(i)})
		meta := fmt.Sprintf(`{"id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaa%04s","t":"10.9.%d.%d:7951","p":1,"v":"x"}`, base32of(i), i>>8, i&255)
		b = append(b, 0x87)
		b = str(str(b, "Name"), fmt.Sprintf("a%d/%016x.0", i, i))
		b = str(str(b, "Addr"), ip)
		b = append(str(b, "Port"), 0xcd, 0x1f, 0x0e)
		b = str(str(b, "Meta"), meta)
		b = append(str(b, "Incarnation"), 1)
		b = append(str(b, "State"), 0)
		b = str(str(b, "Vsn"), "\x01\x05\x02\x00\x00\x00")
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// Members that one member makes up are bounded in number, keep news from no honest one,
// and are gone within minutes.
func TestClusterGhosts(t *testing.T) {
	if raceDetector {
		t.Skip(withoutRace)
	}
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		c.announce(c.nodes[0], refFor("a", "all"))
		c.within(5*time.Second, "all hold it", c.converged)
		evil, victim := c.nodes[2], c.nodes[0]
		members := func(nd *simNode) int { return nd.Status(context.Background()).Members }
		for range 1 {
			if err := evil.SendGossip(context.Background(), victim.cfg.TransferBind, ghosts(2500)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if got := members(victim); got < 1000 || got > 2100 {
			t.Errorf("%d members, want the bound of what was made up", got)
		}
		c.announce(victim, refFor("a", "all"))
		c.within(10*time.Second, "an announcement is everywhere", c.converged)
		began := time.Now()
		img, err := victim.Images(context.Background(), refFor("a", "all"))
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, ns := range img.Images[0].Nodes {
			if ns.State == report.Ready {
				ready++
			}
		}
		if took := time.Since(began); ready != 3 || took > 5*time.Second {
			t.Errorf("%d nodes are ready in the matrix after %s, want 3", ready, took)
		}
		c.within(8*time.Minute, "those that are made up are gone", func() error {
			for _, nd := range c.nodes {
				if got := members(nd); got != 3 {
					return fmt.Errorf("%s has %d members", nd.cfg.Name, got)
				}
			}
			return nil
		})
		if got := len(victim.Members().Members); got != 3 {
			t.Errorf("%d members are shown", got)
		}
		for range 10 { // memberlist goes on gossiping to the dead for half a minute
			c.announce(c.nodes[1], refFor("a", "all"))
			c.within(5*time.Second, "the next one is everywhere", c.converged)
		}
	})
}

// base32of is i in four characters of an id.
func base32of(i int) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"
	return string([]byte{digits[i>>15&31], digits[i>>10&31], digits[i>>5&31], digits[i&31]})
}
