package p2p_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"seeder/p2p/p2ptest"
)

// sees says whether every one of nodes has nd in a state.
func sees(nodes []*simNode, nd *simNode, state string) func() error {
	return func() error {
		for _, o := range nodes {
			found := ""
			for _, m := range o.Members().Members {
				if m.Name == nd.cfg.Name {
					found = m.State
				}
			}
			if found != state {
				return fmt.Errorf("%s sees %s %q, want %q", o.cfg.Name, nd.cfg.Name, found, state)
			}
		}
		return nil
	}
}

// TestClusterMissedFarewell: a node that could not hear the farewell of another one has it
// as dead, and learns from the others that it left: also after they were started again, and
// where it was away itself meanwhile.
func TestClusterMissedFarewell(t *testing.T) {
	for name, then := range map[string]func(c *simCluster, missed *simNode, others []*simNode){
		"it was cut off": func(*simCluster, *simNode, []*simNode) {},
		"the others were started again": func(c *simCluster, _ *simNode, others []*simNode) {
			time.Sleep(time.Minute)
			c.kill(others...)
			c.start(others...)
		},
		"it was started again": func(c *simCluster, missed *simNode, _ []*simNode) {
			c.kill(missed)
			c.start(missed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, []int{4}, func(c *simCluster) {
				others, gone, missed := c.nodes[:2], c.nodes[2], c.nodes[3]
				c.start(c.nodes...)
				c.within(5*time.Second, "all see all", c.allAlive)
				time.Sleep(time.Minute)
				c.net.Part([]*p2ptest.Host{missed.host}, []*p2ptest.Host{c.nodes[0].host, c.nodes[1].host, gone.host})
				c.leave(gone)
				c.within(5*time.Second, "who heard the farewell knows", sees(others, gone, "left"))
				c.within(time.Minute, "who did not has it as dead", sees([]*simNode{missed}, gone, "dead"))
				then(c, missed, others)
				c.net.Heal()
				c.within(2*time.Minute, "all know that it left", sees(c.running(), gone, "left"))
				c.start(gone)
				c.within(10*time.Second, "it is back", c.allAlive)
				time.Sleep(2 * time.Minute)
				c.within(0, "and stays", c.allAlive)
			})
		})
	}
}

// TestClusterMissedRestartAndFarewell: a node that was away while another one was started
// again, and then left, does not keep that one as dead.
func TestClusterMissedRestartAndFarewell(t *testing.T) {
	simulate(t, []int{4}, func(c *simCluster) {
		others, gone, missed := c.nodes[:2], c.nodes[2], c.nodes[3]
		c.start(c.nodes...)
		c.within(5*time.Second, "all see all", c.allAlive)
		time.Sleep(time.Minute)
		c.net.Part([]*p2ptest.Host{missed.host}, []*p2ptest.Host{others[0].host, others[1].host, gone.host})
		c.within(time.Minute, "it is dead for who is cut off", sees([]*simNode{missed}, gone, "dead"))
		c.kill(gone)
		c.start(gone)
		c.within(time.Minute, "the others see it", sees(others, gone, "alive"))
		time.Sleep(time.Minute)
		c.leave(gone)
		c.within(5*time.Second, "who heard the farewell knows", sees(others, gone, "left"))
		c.net.Heal()
		c.within(2*time.Minute, "all know that it left", sees(c.running(), gone, "left"))
	})
}

// farewells is an exchange of states, framed as on a stream, that tells of farewells.
func farewells(from, list string) []byte {
	return exchangeOf(fmt.Sprintf(`{"n":%q,"h":0,"l":[%s]}`, from, list))
}

// exchangeOf is an exchange of memberlist's states, framed as on a stream, of no member, with
// what seeder adds to it.
func exchangeOf(user string) []byte {
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := []byte{6, 0x83} // a push/pull; a map of three
	b = append(str(b, "Nodes"), 0)
	b = binary.BigEndian.AppendUint32(append(str(b, "UserStateLen"), 0xce), uint32(len(user)))
	b = append(str(b, "Join"), 0xc2)
	b = append(b, user...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// TestClusterForgedFarewell: a member that tells of a farewell that it made up, or of that of
// an earlier run, has nobody take a member for left, neither one that died nor one that is
// alive.
func TestClusterForgedFarewell(t *testing.T) {
	simulate(t, []int{4}, func(c *simCluster) {
		honest, victim, evil := []*simNode{c.nodes[0], c.nodes[1]}, c.nodes[2], c.nodes[3]
		c.start(c.nodes...)
		c.within(5*time.Second, "all see all", c.allAlive)
		c.leave(victim)
		c.within(5*time.Second, "it left", sees(honest, victim, "left"))
		old := savedFarewell(c, evil, victim)
		c.start(victim)
		c.within(10*time.Second, "it is back", c.allAlive)
		made, err := json.Marshal([]byte(metaOf(victim.ID(), at(victim, 7951), `,"l":true`)))
		if err != nil {
			t.Fatal(err)
		}
		list := old + fmt.Sprintf(`,{"i":"%s.0","g":"%s","m":%s,"s":1}`, instanceOf(c, evil, victim), at(victim, 7950), made)
		tell := func() {
			for _, to := range honest {
				if err := evil.SendGossip(context.Background(), to.cfg.TransferBind, farewells(evil.cfg.Name, list)); err != nil {
					t.Fatal(err)
				}
			}
		}
		tell()
		c.within(0, "it is alive", sees(honest, victim, "alive"))
		c.kill(victim)
		c.within(time.Minute, "it is dead", sees(honest, victim, "dead"))
		tell()
		time.Sleep(2 * time.Minute)
		c.within(0, "it is still dead", sees(honest, victim, "dead"))
	})
}

// savedFarewell is the farewell of nd in the file of known members of another node, as that
// node tells others of it.
func savedFarewell(c *simCluster, of, nd *simNode) (told string) {
	c.t.Helper()
	c.within(10*time.Second, "the farewell is saved", func() error {
		b, err := os.ReadFile(filepath.Join(of.cfg.DataDir, "members.json"))
		if err != nil {
			return err
		}
		var list []struct {
			Name, Gossip, Instance, Farewell string
		}
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		for _, k := range list {
			if k.Name == nd.cfg.Name && k.Farewell != "" {
				told = fmt.Sprintf(`{"i":%q,"g":%q,"m":%q,"s":1}`, k.Instance, k.Gossip, k.Farewell)
				return nil
			}
		}
		return fmt.Errorf("no farewell in %s", b)
	})
	return told
}
