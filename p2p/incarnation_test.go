package p2p_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"testing"
	"time"
)

// claim is an exchange of states, framed as on a stream, that says of one member, by the
// name of its instance, in which state it is and which incarnation it has; no name: of nobody.
func claim(name string, state byte, incarnation uint32) []byte {
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	count := byte(1)
	if name == "" {
		count = 0
	}
	b := []byte{6, 0x83} // a push/pull; a map of three
	b = append(str(b, "Nodes"), count)
	b = append(str(b, "UserStateLen"), 0)
	b = append(str(b, "Join"), 0xc2)
	if name != "" {
		b = append(b, 0x87)
		b = str(str(b, "Name"), name)
		b = str(str(b, "Addr"), "\x0a\x00\x00\x01")
		b = append(str(b, "Port"), 0xcd, 0x1f, 0x0e)
		b = str(str(b, "Meta"), "{}")
		b = binary.BigEndian.AppendUint32(append(str(b, "Incarnation"), 0xce), incarnation)
		b = append(str(b, "State"), state)
		b = str(str(b, "Vsn"), "\x01\x05\x02\x00\x00\x00")
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// A member that claims the highest incarnation of another one, whose objection then would
// start at zero again, silences it for nobody: not with what the wall refuses, nor with the
// highest number that it takes, nor again and again.
func TestClusterIncarnation(t *testing.T) {
	for _, incarnation := range []uint32{math.MaxUint32, math.MaxUint32 - 1, 1 << 31, 1<<31 - 1, 1 << 30} {
		for state, said := range map[byte]string{1: "suspect", 2: "dead", 3: "left"} {
			t.Run(fmt.Sprintf("%s %d", said, incarnation), func(t *testing.T) {
				if raceDetector && incarnation != 1<<31-1 {
					t.Skip(withoutRace) // the same goroutines with another number
				}
				simulate(t, []int{4}, func(c *simCluster) {
					c.start(c.nodes...)
					c.within(5*time.Second, "all see all", c.allAlive)
					evil, victim := c.nodes[3], c.nodes[1]
					for range 3 {
						for _, to := range []*simNode{c.nodes[0], c.nodes[2]} {
							answer, err := evil.AskGossip(context.Background(), to.cfg.TransferBind, claim("", 0, 0))
							if err != nil {
								t.Fatal(err)
							}
							names := regexp.MustCompile(victim.cfg.Name+`/[0-9a-f]{16}\.[0-9]+`).FindAllString(string(answer), -1)
							if len(names) == 0 {
								t.Fatalf("no instance of the victim in %q", answer)
							}
							for _, name := range names {
								if err := evil.SendGossip(context.Background(), to.cfg.TransferBind, claim(name, state, incarnation)); err != nil {
									t.Fatal(err)
								}
							}
						}
						time.Sleep(5 * time.Second)
						c.within(40*time.Second, "all see all again", c.allAlive)
					}
					time.Sleep(2 * time.Minute)
					if err := c.allAlive(); err != nil {
						t.Error(err)
					}
					c.announce(victim, refFor("a", "all"))
					c.within(5*time.Second, "what the victim announced is everywhere", c.converged)
					c.announce(c.nodes[0], refFor("b", "all"))
					c.within(5*time.Second, "what another one announced is there", c.converged)
				})
			})
		}
	}
}
