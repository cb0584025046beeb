package gossip

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"seeder/p2p/trust"
)

// TestVouched: how many members count as dead on the word of others is bounded, for each
// identity and in all; nothing is taken of a member that is known, was forgotten, has the
// address of another one or died more than 72 hours ago; after that time it is gone.
func TestVouched(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ms := newMembers(newInstance("a"))
	ms.seen(&Member{Name: "b", State: StateAlive, ID: testID, gossip: "10.0.0.2:7950", instance: newInstance("b")})
	if err := ms.forget("d"); err == nil {
		t.Error("who is not known was forgotten")
	}
	died := func(name, gossip string, ago time.Duration) away {
		return away{Name: name, Gossip: gossip, Address: strings.Replace(gossip, "7950", "7951", 1), Version: "1", Seconds: int64(ago / time.Second)}
	}
	added := ms.vouch(testID, []away{
		died("a", "10.0.0.9:7950", 0), died("b", "10.0.0.9:7950", 0), died("c", "10.0.0.2:7950", 0), died("d", "10.0.0.9:7950", 0),
		died("e", "10.0.0.9:7950", deadFor+time.Minute), died("f", "10.0.0.9:7950", -time.Hour), died("g\n", "10.0.0.9:7950", 0), died("h", "host:7950", 0),
		died("good", "10.0.0.9:7950", time.Hour),
	}, now)
	if len(added) != 1 || added[0] != "good" {
		t.Fatalf("%v were added", added)
	}
	if list := ms.dead(now); len(list) != 0 {
		t.Errorf("passes on the word of others: %+v", list)
	}
	for i := range 2 * maxVouchedAll {
		by := trust.NodeID(fmt.Sprintf("%032d", i/(2*maxVouched)))
		ms.vouch(by, []away{died(fmt.Sprint("ghost", i), "10.0.0.9:7950", 0)}, now)
	}
	by := map[trust.NodeID]int{}
	for _, m := range ms.byName {
		by[m.voucher]++
	}
	if delete(by, ""); len(by) != 5 {
		t.Errorf("%d identities, want 5: %v", len(by), by)
	}
	all := 0
	for id, n := range by {
		if all += n; n > maxVouched {
			t.Errorf("%d by %s", n, id)
		}
	}
	if all != maxVouchedAll {
		t.Errorf("%d in all, want %d", all, maxVouchedAll)
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forgetLocked(now.Add(deadFor - 2*time.Hour + time.Minute))
	if len(ms.byName) != 1+maxVouchedAll {
		t.Errorf("%d members, want all before 72 hours", len(ms.byName))
	}
	ms.forgetLocked(now.Add(deadFor + time.Minute))
	if len(ms.byName) != 1 {
		t.Errorf("%d members after 72 hours, want 1", len(ms.byName))
	}
}
