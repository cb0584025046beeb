package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

// farewellOf is what others tell of the farewell of an instance, signed with id.
func farewellOf(t *testing.T, id *trust.Identity, i instance, at string, meta Meta) farewell {
	t.Helper()
	meta.TransferAddress, meta.Protocol, meta.Version = ":7951", 1, "test"
	b, err := meta.encode()
	if err != nil {
		t.Fatal(err)
	}
	return farewell{Instance: i.String(), Gossip: at, Meta: signMeta(b, i, netip.MustParseAddrPort(at), id), Seconds: 60}
}

// TestForgedFarewell: a member that died counts as left only by a farewell that it signed
// itself, for the instance that died and its address, and one that is alive stays so.
func TestForgedFarewell(t *testing.T) {
	t.Parallel()
	id, evil, now := newIdentity(t), newIdentity(t), time.Now()
	const at = "10.0.0.2:7950"
	first := newInstance("b")
	moved := first.next()
	run := func(seconds int64) instance { // of the same host, that began so much later
		began, err := strconv.ParseInt(first.process[:8], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		i := newInstance("b")
		i.process = fmt.Sprintf("%08x%s", began+seconds, i.process[8:])
		return i
	}
	leaving := Meta{Leaving: true}
	died := func() *members {
		ms := newMembers(newInstance("a"))
		ms.seen(said(t, id, moved, at))
		ms.contacts[moved] = contact{reached: true}
		if state := ms.gone(moved); state != StateDead {
			t.Fatalf("state %q", state)
		}
		return ms
	}
	good := farewellOf(t, id, moved, at, leaving)
	with := func(change func(f *farewell)) farewell {
		f := good
		change(&f)
		return f
	}
	text, proof := splitMeta(good.Meta)
	for what, f := range map[string]farewell{
		"signed by another node": farewellOf(t, evil, moved, at, leaving),
		"of an earlier run":      farewellOf(t, id, run(-1), at, leaving),
		"of an earlier instance": farewellOf(t, id, first, at, leaving),
		"of another name":        farewellOf(t, id, newInstance("c"), at, leaving),
		"no farewell":            farewellOf(t, id, moved, at, Meta{}),
		"for another instance":   with(func(f *farewell) { f.Instance = moved.next().String() }),
		"for another address":    with(func(f *farewell) { f.Gossip = "10.0.0.3:7950" }),
		"without an address":     with(func(f *farewell) { f.Gossip = "b" }),
		"without an instance":    with(func(f *farewell) { f.Instance = "b" }),
		"without a proof":        with(func(f *farewell) { f.Meta = text }),
		"without metadata":       with(func(f *farewell) { f.Meta = nil }),
		"with other metadata": with(func(f *farewell) {
			f.Meta = slices.Concat(bytes.Replace(text, []byte("test"), []byte("tost"), 1), []byte{0}, proof)
		}),
		"with too much":             with(func(f *farewell) { f.Meta = append(make([]byte, wall.MaxMetaBytes), f.Meta...) }),
		"of the time to come":       with(func(f *farewell) { f.Seconds = -1 }),
		"of more than a day before": with(func(f *farewell) { f.Seconds = int64(leftFor/time.Second) + 1 }),
	} {
		ms := died()
		if left := ms.learn(testID, []farewell{f}, now); len(left) != 0 || ms.byName["b"].State != StateDead || len(ms.byName) != 1 {
			t.Errorf("%s: %v, %+v", what, left, ms.byName["b"])
		}
	}
	// That of a later run counts: it was started again, and left, while this node was away.
	for seconds, want := range map[int64]string{1: StateLeft, 3600: StateLeft, 0: StateDead, -1: StateDead} {
		ms, i := died(), run(seconds)
		if ms.learn(testID, []farewell{farewellOf(t, id, i, at, leaving)}, now); ms.byName["b"].State != want {
			t.Errorf("of a run that began %d s later: %s, want %s", seconds, ms.byName["b"].State, want)
		}
	}
	ms := died()
	if left := ms.learn(testID, []farewell{good}, now); !slices.Equal(left, []string{"b"}) || ms.byName["b"].State != StateLeft {
		t.Fatalf("%v, %+v", left, ms.byName["b"])
	}
	if list := ms.farewells(now); len(list) != 1 || list[0].Seconds != 60 || !bytes.Equal(list[0].Meta, good.Meta) {
		t.Errorf("tells others %+v", list)
	}
	ms.seen(said(t, id, newInstance("b"), at))
	if left := ms.learn(testID, []farewell{good}, now); len(left) != 0 || ms.byName["b"].State != StateAlive || ms.byName["b"].leaving {
		t.Errorf("a later run: %v, %+v", left, ms.byName["b"])
	}
}

// TestFarewellBeforeTheEnd: who hears of the farewell before memberlist knows that the
// member is gone counts it as left, and not as dead, as soon as it is gone.
func TestFarewellBeforeTheEnd(t *testing.T) {
	t.Parallel()
	id, evil := newIdentity(t), newIdentity(t)
	const at = "10.0.0.2:7950"
	i := newInstance("b")
	for _, by := range []*trust.Identity{id, evil} {
		ms := newMembers(newInstance("a"))
		ms.seen(said(t, id, i, at))
		ms.contacts[i] = contact{reached: true}
		ms.learn(testID, []farewell{farewellOf(t, by, i, at, Meta{Leaving: true})}, time.Now())
		if m := ms.byName["b"]; m.State != StateAlive {
			t.Errorf("%+v", m)
		}
		want := map[bool]string{true: StateLeft, false: StateDead}[by == id]
		if state := ms.gone(i); state != want {
			t.Errorf("state %q, want %q", state, want)
		}
	}
}

// TestFarewellsAreBounded: a node tells 64 farewells, the last ones, which fit into an
// exchange of states, and takes no more from one. A member that is dead on the word of a
// node is not once that node says that it left; the word of another one changes nothing.
func TestFarewellsAreBounded(t *testing.T) {
	t.Parallel()
	id, now := newIdentity(t), time.Now()
	ms := newMembers(newInstance("a"))
	for n := range 2 * maxFarewells {
		i := newInstance("b" + string(rune('0'+n)))
		f := farewellOf(t, id, i, "10.0.0.2:7950", Meta{Leaving: true})
		ms.byName[i.node] = &Member{Name: i.node, State: StateLeft, Since: now.Add(-time.Duration(n) * time.Minute), ID: id.ID(), instance: i, gossip: f.Gossip, word: word{told: string(f.Meta)}}
	}
	list := ms.farewells(now)
	if len(list) != maxFarewells || list[0].Seconds != 0 || list[maxFarewells-1].Seconds != (maxFarewells-1)*60 {
		t.Fatalf("%d farewells: %+v", len(list), list)
	}
	for k := range list {
		list[k].Meta = make([]byte, wall.MaxMetaBytes)
	}
	if b, err := json.Marshal(state{Name: "a", Left: list}); err != nil || len(b) > wall.MaxStateBytes {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	i := newInstance("z")
	f := farewellOf(t, id, i, "10.0.0.2:7950", Meta{Leaving: true})
	ms.byName["z"] = &Member{Name: "z", State: StateDead, Since: now, ID: id.ID(), gossip: f.Gossip, standing: standing{voucher: testID}}
	if left := ms.learn(id.ID(), []farewell{f}, now); len(left) != 0 || ms.byName["z"] == nil || ms.byName["z"].State != StateDead {
		t.Errorf("%v, %+v", left, ms.byName["z"])
	}
	if ms.learn(testID, append(list, f), now); ms.byName["z"] == nil {
		t.Error("took more than 64 from one exchange")
	}
	if ms.learn(testID, []farewell{f}, now); ms.byName["z"] != nil {
		t.Errorf("still dead on its word: %+v", ms.byName["z"])
	}
}

// slowAnswer is a stream whose answer is read only once released is closed.
type slowAnswer struct {
	net.Conn
	released <-chan struct{}
}

func (s slowAnswer) Read(p []byte) (int, error) {
	<-s.released
	return s.Conn.Read(p)
}

// TestLeaveInTheFirstJoin: a node that is closed in the middle of its first join says
// farewell to the member that has taken it in already. Without that the member took it for
// one that was made up, forgot it, and did not report that it came back as another one.
func TestLeaveInTheFirstJoin(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	closing := make(chan struct{})
	b := start(t, "b", 1, func(c *Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, addr string) (net.Conn, trust.NodeID, error) {
			conn, id, err := dial(ctx, addr)
			return slowAnswer{conn, closing}, id, err
		}
	}, a.addr)
	eventually(t, "a has taken b in", func() bool { return a.state("b") == StateAlive })
	cancel := b.cancel
	b.cancel = func() {
		cancel()
		time.AfterFunc(50*time.Millisecond, func() { close(closing) }) // whatever cuts the stream has done so
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a heard the farewell", func() bool { return a.state("b") == StateLeft })
}
