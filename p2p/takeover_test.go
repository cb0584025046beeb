package p2p_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

// claimAlive is an exchange of states, framed as on a stream, that says of one instance that it
// is alive at an address with this metadata.
func claimAlive(name string, at netip.AddrPort, meta string, incarnation uint32) []byte {
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := []byte{6, 0x83} // a push/pull; a map of three
	b = append(str(b, "Nodes"), 1)
	b = append(str(b, "UserStateLen"), 0)
	b = append(str(b, "Join"), 0xc2)
	b = append(b, 0x87)
	b = str(str(b, "Name"), name)
	b = str(str(b, "Addr"), string(at.Addr().AsSlice()))
	b = binary.BigEndian.AppendUint16(append(str(b, "Port"), 0xcd), at.Port())
	b = str(str(b, "Meta"), meta)
	b = binary.BigEndian.AppendUint32(append(str(b, "Incarnation"), 0xce), incarnation)
	b = append(str(b, "State"), 0)
	b = str(str(b, "Vsn"), "\x01\x05\x02\x00\x00\x00")
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// TestClusterTakeover: a member cannot take the row of another one by claims of it: a newer
// instance, another process, other metadata, at whichever address. Nobody sees the victim
// anywhere but where it is, nobody takes it for gone, and it is told what is announced.
func TestClusterTakeover(t *testing.T) {
	for name, claim := range map[string]func(instance string, moved int, victim, evil *simNode) (string, netip.AddrPort, string){
		"a newer instance elsewhere": func(i string, moved int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return fmt.Sprint(i, ".", moved), at(evil, 7999), metaOf(victim.ID(), at(evil, 7951), "")
		},
		"a newer instance with another identity": func(i string, moved int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return fmt.Sprint(i, ".", moved), at(evil, 7999), metaOf(evil.ID(), at(evil, 7951), "")
		},
		"another process at its address": func(_ string, moved int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return fmt.Sprintf("%s/%016x.0", victim.cfg.Name, moved), at(victim, 7950), metaOf(victim.ID(), at(evil, 7951), "")
		},
		"another process and identity at its address": func(_ string, moved int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return fmt.Sprintf("%s/%016x.0", victim.cfg.Name, moved), at(victim, 7950), metaOf(evil.ID(), at(evil, 7951), "")
		},
		"the same instance with another transfer port": func(i string, _ int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return i + ".0", at(victim, 7950), metaOf(victim.ID(), at(evil, 7951), "")
		},
		"the same instance that leaves": func(i string, _ int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return i + ".0", at(victim, 7950), metaOf(victim.ID(), at(victim, 7951), `,"l":true`)
		},
		"its identity under another name": func(_ string, moved int, victim, evil *simNode) (string, netip.AddrPort, string) {
			return fmt.Sprintf("a/%016x.0", moved), at(evil, 7999), metaOf(victim.ID(), at(evil, 7951), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			if raceDetector && !strings.HasPrefix(name, "the same instance") {
				t.Skip(withoutRace) // the same goroutines with another claim
			}
			simulate(t, []int{4}, func(c *simCluster) { c.takeOver(claim) })
		})
	}
}

func (c *simCluster) takeOver(claim func(instance string, moved int, victim, evil *simNode) (string, netip.AddrPort, string)) {
	c.start(c.nodes...)
	c.within(5*time.Second, "all see all", c.allAlive)
	victim, evil := c.nodes[1], c.nodes[3]
	honest := c.nodes[:3]
	instance := instanceOf(c, evil, victim)
	for round := range 30 {
		for _, to := range honest {
			name, addr, meta := claim(instance, round+7, victim, evil)
			if err := evil.SendGossip(context.Background(), to.cfg.TransferBind, claimAlive(name, addr, meta, uint32(100+10*round))); err != nil {
				c.t.Fatal(err)
			}
		}
		for range 20 {
			time.Sleep(50 * time.Millisecond)
			if err := seenAt(honest, victim); err != nil {
				c.t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	c.announce(c.nodes[0], refFor("a", "all"))
	c.within(5*time.Second, "what another one announced is there, too", c.converged)
	c.announce(victim, refFor("b", "all"))
	c.within(5*time.Second, "what the victim announced is everywhere", c.converged)
	if lost := c.lost(); len(lost) > 0 {
		c.t.Errorf("members were taken for gone:\n%s", strings.Join(lost, "\n"))
	}
	c.kill(victim)
	c.within(time.Minute, "it is away, and nobody says that it left", func() error {
		for _, to := range []*simNode{honest[0], honest[2]} {
			name, addr, meta := claim(instance, 50, victim, evil)
			if err := evil.SendGossip(context.Background(), to.cfg.TransferBind, claimAlive(name, addr, meta, 1000)); err != nil {
				return err
			}
			for _, m := range to.Members().Members {
				if m.Name == victim.cfg.Name && m.State != "dead" {
					return fmt.Errorf("%s sees %+v", to.cfg.Name, m)
				}
			}
		}
		return nil
	})
}

func at(nd *simNode, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(nd.host.IP()), port)
}

func metaOf(id any, transfer netip.AddrPort, more string) string {
	return fmt.Sprintf(`{"id":"%s","t":"%s","p":1,"o":1,"v":"test"%s}`, id, transfer, more)
}

// instanceOf is the name of nd's instance without its count, as asker is told it.
func instanceOf(c *simCluster, asker, nd *simNode) string {
	c.t.Helper()
	answer, err := asker.AskGossip(context.Background(), nd.cfg.TransferBind, claim("", 0, 0))
	if err != nil {
		c.t.Fatal(err)
	}
	found := regexp.MustCompile(`(` + nd.cfg.Name + `/[0-9a-f]{16})\.[0-9]+`).FindSubmatch(answer)
	if found == nil {
		c.t.Fatalf("no instance of %s in %q", nd.cfg.Name, answer)
	}
	return string(found[1])
}

// seenAt says whether nodes see nd alive where it is, with its own identity, and no conflict.
func seenAt(nodes []*simNode, nd *simNode) error {
	for _, o := range nodes {
		found := false
		for _, m := range o.Members().Members {
			if m.Reason != "" || m.Name != nd.cfg.Name && m.ID == string(nd.ID()) {
				return fmt.Errorf("%s sees %+v", o.cfg.Name, m)
			}
			if m.Name != nd.cfg.Name {
				continue
			}
			if found = true; m.Address != nd.host.IP()+":7951" || m.State != "alive" || m.ID != string(nd.ID()) {
				return fmt.Errorf("%s sees %+v", o.cfg.Name, m)
			}
		}
		if !found {
			return fmt.Errorf("%s does not know %s", o.cfg.Name, nd.cfg.Name)
		}
	}
	return nil
}
