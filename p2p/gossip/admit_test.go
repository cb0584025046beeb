package gossip

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// nodeOf is what memberlist tells of an instance, without metadata.
func nodeOf(i instance, last byte) *memberlist.Node {
	return &memberlist.Node{Name: i.String(), Addr: []byte{10, 0, 0, last}, Port: 7950}
}

// TestMadeUpMembersAreBounded: what was never reached is taken up to a bound, which does
// not count those that were, and keeps nobody out whose identity a handshake has proved.
func TestMadeUpMembersAreBounded(t *testing.T) {
	t.Parallel()
	ms := newMembers(newInstance("a"))
	add := func(name string) error {
		i := newInstance(name)
		if err := ms.admit(nodeOf(i, 9), i, ""); err != nil {
			return err
		}
		ms.seen(&Member{Name: name, State: StateAlive, gossip: "10.0.0.9:7950", instance: i})
		return nil
	}
	for n := range maxUnproved {
		if err := add(fmt.Sprint("ghost", n)); err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
	}
	if err := add("ghost"); !errors.Is(err, errTooMany) {
		t.Errorf("one more than %d: %v", maxUnproved, err)
	}
	id := newIdentity(t)
	i := newInstance("honest")
	ms.prove(id.ID(), time.Now())
	if err := ms.admit(nodeOf(i, 2), i, id.ID()); err != nil {
		t.Errorf("who has proved its identity: %v", err)
	}
	for of := range ms.alive {
		ms.answered(of, true)
		break
	}
	if err := add("ghost"); err != nil {
		t.Errorf("after one of them has answered: %v", err)
	}
}

// TestNamesakesAreBounded: one name is taken for so many instances and no more.
func TestNamesakesAreBounded(t *testing.T) {
	t.Parallel()
	ms, id := newMembers(newInstance("a")), newIdentity(t)
	for n := range 2 * maxNamesakes {
		i := newInstance("b")
		m := said(t, id, i, fmt.Sprintf("10.0.0.%d:7950", n+2))
		node := nodeOf(i, byte(n+2))
		node.Meta = []byte(m.told)
		err := ms.admit(node, i, id.ID())
		if want := n >= maxNamesakes; errors.Is(err, errTooMany) != want || err != nil && !want {
			t.Fatalf("instance %d of one name: %v", n+1, err)
		}
		if err == nil {
			ms.seen(m)
		}
	}
}
