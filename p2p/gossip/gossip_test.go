package gossip

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"seeder/internal/text"
	"seeder/p2p/gossip/wall"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

func TestMain(m *testing.M) {
	// memberlist's own goroutines have no owner that waits; they end soon after
	// Shutdown.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).streamListen"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).triggerFunc")) // a probe under way
}

const testID = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestJoinHintAndLeave(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	b := start(t, "b", 1, nil, a.addr)
	c := start(t, "c", 1, nil, a.addr)
	for _, n := range []*node{a, b, c} {
		eventually(t, "three members", func() bool { return len(n.Alive()) == 3 })
	}
	if m := b.Members()[0]; m.Name != "a" || m.Address != a.addr || m.ID != a.id() || m.Version != "test" {
		t.Errorf("b sees %+v", m)
	}
	h := Hint{Reference: "docker.io/library/x:1", Digest: digest.FromString("x"), Version: 7, Holder: "a"}
	a.Broadcast(h)
	for _, n := range []*node{b, c} {
		eventually(t, "the hint arrives", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.hints) > 0 && n.hints[0] == h
		})
	}
	a.SetCatalog(42)
	eventually(t, "somebody hears of another catalog", func() bool { // a tells one by chance every 5 s
		return slices.ContainsFunc([]*node{b, c}, func(n *node) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.diffs) > 0 && n.diffs[0] == "a"
		})
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c has left", func() bool { return a.state("c") == StateLeft && b.state("c") == StateLeft })
}

// TestCloseWhileJoining: a host that accepts and says nothing does not hold up the
// end of this node.
func TestCloseWhileJoining(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	n := start(t, "a", 1, nil, silent.Addr().String())
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closing took %s", took)
	}
}

// TestDialEnds: nor does a host that does not even accept.
func TestDialEnds(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, func(c *Config) {
		c.Dial = func(ctx context.Context, _ string) (net.Conn, trust.NodeID, error) {
			<-ctx.Done()
			return nil, "", ctx.Err()
		}
	}, "127.0.0.1:1")
	time.AfterFunc(100*time.Millisecond, func() { a.Close() })
	began := time.Now()
	conn, err := a.site.transport.Load().DialTimeout("127.0.0.1:1", 20*time.Second)
	if err == nil {
		conn.Close()
	}
	if took := time.Since(began); err == nil || took > 5*time.Second {
		t.Errorf("dialling ended after %s: %v", took, err)
	}
}

func TestRejoinsAfterEverybodyWasDown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	peers := func(c *Config) { c.PeersFile = filepath.Join(dir, c.NodeName) }
	a := start(t, "a", 1, peers)
	b := start(t, "b", 1, peers, a.addr)
	eventually(t, "they know each other", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
	addrA, addrB := a.addr, b.addr
	for _, n := range []*node{a, b} {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n.shut()
	}
	// Neither has a join address now: the file of known members has to do.
	a = startAt(t, "a", addrA, a.cfg.Keys, peers)
	b = startAt(t, "b", addrB, b.cfg.Keys, peers)
	eventually(t, "they know each other again", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
}

func TestOtherSecretIsTold(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	b := start(t, "b", 2, nil, a.addr)
	eventually(t, "b says that the secrets differ", func() bool {
		_, err := b.Status()
		return errors.Is(err, trust.ErrSecretsDiffer) && strings.Contains(b.log.String(), "secrets differ")
	})
	eventually(t, "a says that a stranger tried to connect", func() bool { return strings.Contains(a.log.String(), "different cluster secret") })
	if len(a.Alive()) != 1 {
		t.Fatalf("a took a stranger in: %+v", a.Members())
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	addr := a.site.transport.Load().LocalAddr().String()
	g := New(Config{NodeName: "b", BindAddr: addr, Keys: [][]byte{bytes.Repeat([]byte{1}, 32)},
		Meta: Meta{ID: testID, TransferAddress: ":7951"}})
	err := g.Open(t.Context())
	if err == nil || !strings.Contains(err.Error(), "gossip.bind "+addr) {
		t.Fatalf("got %v, want an error that names gossip.bind and the address", err)
	}
}

func TestKeyringAcceptsAllSecrets(t *testing.T) {
	t.Parallel()
	old, next := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	a := startAt(t, "a", "127.0.0.1:0", [][]byte{old, next}, nil)
	b := startAt(t, "b", "127.0.0.1:0", [][]byte{next, old}, nil, a.addr)
	eventually(t, "two hosts in the middle of a rotation talk", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
}

// TestKeysChangeWhileItRuns: members that change their keys one after the other, as
// a rotation goes, lose nobody; who keeps the old key alone is out.
func TestKeysChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	old, next := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	a := start(t, "a", 1, nil)
	b := start(t, "b", 1, nil, a.addr)
	eventually(t, "a and b know each other", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
	for i, keys := range [][][]byte{{old, next}, {next, old}, {next}} {
		for _, n := range []*node{a, b} {
			n.setKeys(t, keys)
			hint := Hint{Reference: fmt.Sprintf("docker.io/library/step:%d-%s", i, n.cfg.NodeName), Version: 1, Digest: digest.FromString("x"), Holder: n.cfg.NodeName}
			n.Broadcast(hint)
			other := map[*node]*node{a: b, b: a}[n]
			eventually(t, "the other hears of "+hint.Reference, func() bool {
				other.mu.Lock()
				defer other.mu.Unlock()
				return slices.Contains(other.hints, hint)
			})
		}
	}
	c := start(t, "c", 1, nil, a.addr)
	eventually(t, "c says that the secrets differ", func() bool {
		_, err := c.Status()
		return errors.Is(err, trust.ErrSecretsDiffer)
	})
	if len(a.Alive()) != 2 {
		t.Errorf("a took in who has only the old key: %+v", a.Members())
	}
}

func TestHintsAreBounded(t *testing.T) {
	t.Parallel()
	h := Hint{Reference: strings.Repeat("r", 300), Digest: digest.FromString("x"), Version: 1 << 60, Holder: "node"}
	b, err := h.encode()
	if err != nil || len(b) > maxHintBytes {
		t.Fatalf("%d bytes %v", len(b), err)
	}
	got, err := decodeHint(b)
	if err != nil || got.Reference != "" || got.Holder != "node" {
		t.Fatalf("got %+v %v, want a hint without the reference", got, err)
	}
	if _, err := (Hint{Digest: "sha256:x"}).encode(); err == nil {
		t.Error("a hint without a digest was encoded")
	}
}

func TestMetaIsChecked(t *testing.T) {
	t.Parallel()
	good := Meta{ID: testID, TransferAddress: "10.0.0.1:7951", Version: "1"}
	for i, change := range []func(*Meta){
		func(m *Meta) { m.ID = "x" },
		func(m *Meta) { m.TransferAddress = "10.0.0.1" },
		func(m *Meta) { m.TransferAddress = "10.0.0.1:99999" },
		func(m *Meta) { m.Version = "\x1b[2J" },
	} {
		m := good
		change(&m)
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeMeta(b); err == nil {
			t.Errorf("case %d: %s was accepted", i, b)
		}
	}
	if _, err := (Meta{Version: strings.Repeat("v", 600)}).encode(); err == nil {
		t.Error("metadata beyond memberlist's limit was encoded")
	}
}

func TestProtocols(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ours   Protocols
		meta   string
		reason string
	}{
		{Protocols{1, 1}, `{"p":1}`, ""},
		{Protocols{1, 1}, `{"p":2,"o":1}`, ""},
		{Protocols{2, 3}, `{"p":2}`, ""},
		{Protocols{1, 1}, `{"p":2,"o":2,"id":{"of":"another kind"}}`, "speaks protocol 2, this node 1:"},
		{Protocols{1, 1}, `{"p":4,"o":2}`, "speaks protocol 2 to 4, this node 1:"},
		{Protocols{2, 3}, `{"p":1}`, "speaks protocol 1, this node 2 to 3:"},
		{Protocols{1, 1}, `{}`, "speaks protocol 0, this node 1:"},
		{Protocols{1, 1}, `{"p":"one"}`, ""},
		{Protocols{1, 1}, `not even JSON`, ""},
	} {
		if got := c.ours.foreign([]byte(c.meta)); !strings.HasPrefix(got, c.reason) || (c.reason == "") != (got == "") {
			t.Errorf("%s for %s: %q, want %q", c.meta, c.ours, got, c.reason)
		}
	}
}

// TestWhatALaterBuildAdds is passed over: fields, kinds of messages, and in the
// end metadata that means nothing here, which is said once.
func TestWhatALaterBuildAdds(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, func(c *Config) { c.OnHint = func(h Hint) { t.Errorf("handed over %+v", h) } })
	d := &delegate{Gossip: a.Gossip, of: a.site.place.instance}
	for _, msg := range []string{"", "\x02", "\x07 what nobody knows yet", strings.Repeat("x", 4000)} {
		d.NotifyMsg([]byte(msg))
	}
	if s, err := decodeState([]byte(`{"n":"b","h":1,"c":2,"new":[1,2]}`), wall.MaxMetaBytes); err != nil || s.Name != "b" {
		t.Errorf("%+v %v", s, err)
	}
	meta := `{"id":"` + testID + `","t":":7951","p":1,"v":"9","h":1,"new":{"x":1}}`
	b := &memberlist.Node{Name: "b/0123456789abcdef.0", Addr: net.IPv4(127, 0, 0, 1), Port: 7950, Meta: []byte(meta)}
	d.NotifyJoin(b)
	if p := a.Peers(); len(p) != 2 || p[1].Version != "9" {
		t.Errorf("peers %+v", p)
	}
	b.Meta = []byte(strings.Replace(meta, testID, "of another kind", 1))
	for range 3 {
		d.NotifyUpdate(b)
	}
	if m := a.Members()[1]; len(a.Peers()) != 1 || m.State != StateAlive || m.ID != testID || !strings.Contains(m.Reason, "cannot read") {
		t.Errorf("%+v is no reason not to talk", m)
	}
	if got := strings.Count(a.log.String(), "level=WARN"); got != 1 {
		t.Errorf("warned %d times: %s", got, a.log.String())
	}
	// What was known of it is not forgotten meanwhile.
	b.Meta = []byte(strings.Replace(meta, testID, strings.Repeat("b", 32), 1))
	for range 3 {
		d.NotifyUpdate(b)
	}
	if got := strings.Count(a.log.String(), "new identity"); got != 1 || !strings.Contains(a.log.String(), testID) || a.Members()[1].ID != trust.NodeID(strings.Repeat("b", 32)) {
		t.Errorf("the new identity was reported %d times: %s", got, a.log.String())
	}
	if p := a.Peers(); len(p) != 2 {
		t.Errorf("peers %+v", p)
	}
}

func FuzzDecodeHint(f *testing.F) {
	b, _ := Hint{Reference: "docker.io/library/x:1", Digest: digest.FromString("x"), Version: 7, Holder: "a"}.encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHint(b)
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil {
			t.Fatalf("decodes to %+v, which does not encode: %v", h, err)
		}
		if back, err := decodeHint(again); err != nil || back != h {
			t.Fatalf("%+v becomes %+v %v", h, back, err)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	b, _ := Meta{ID: testID, TransferAddress: ":7951", Version: "1"}.encode()
	f.Add(b)
	f.Add([]byte(`{"id":"x","t":":1","p":1}`))
	f.Add([]byte(`{"id":"` + testID + `","t":":1","p":2,"o":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		reason := Protocols{1, 1}.foreign(b)
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		if len(m.ID) != 32 || !text.Valid(m.Version, maxHintBytes) || (reason == "") != (Protocols{1, 1}).Speaks(m.protocols()) {
			t.Fatalf("accepted %+v, %q", m, reason)
		}
		again, err := m.encode()
		if err != nil {
			return // escapes may make it longer
		}
		if back, err := decodeMeta(again); err != nil || back != m {
			t.Fatalf("%+v becomes %+v %v", m, back, err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"n":"a","h":1}`))
	f.Add([]byte(`{"n":"\u001b[2J"}`))
	f.Add([]byte(`{"n":"a","h":1,"a":[{"n":"b","g":"10.0.0.1:7950","t":"10.0.0.1:7951","v":"1","id":"` + testID + `","s":60},{"n":"\u001b","s":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b, wall.MaxStateBytes)
		if err != nil {
			return
		}
		if !wall.ValidName(s.Name) {
			t.Fatalf("accepted %+v", s)
		}
		ms := newMembers(newInstance("self"))
		ms.vouch(testID, s.Away, time.Now())
		for name, m := range ms.byName {
			if !wall.ValidName(name) || m.State != StateDead || time.Since(m.Since) > deadFor+time.Minute {
				t.Fatalf("took %+v", m)
			}
		}
		again, err := json.Marshal(s)
		if err != nil || len(again) > wall.MaxStateBytes {
			return
		}
		if back, err := decodeState(again, wall.MaxStateBytes); err != nil || !reflect.DeepEqual(back, s) {
			t.Fatalf("%+v becomes %+v %v", s, back, err)
		}
	})
}

func FuzzDecodePeersFile(f *testing.F) {
	f.Add([]byte(`[{"name":"b","gossip":"10.0.0.1:7950","address":"10.0.0.1:7951","version":"1","id":"` + testID + `"},{"name":"c","gossip":"[fd00::1]:7950","dead_since":"2026-01-02T03:04:05Z"}]`))
	f.Add([]byte(`[{"name":"","gossip":"name:7950"},null]`))
	f.Add([]byte(`[7]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		peers, err := decodePeersFile(b)
		if err != nil && len(peers) > 0 || len(peers) > maxPeers {
			t.Fatalf("%d peers with %v", len(peers), err)
		}
		for _, p := range peers {
			if host, _, err := net.SplitHostPort(p.Gossip); err != nil || net.ParseIP(host) == nil || !wall.ValidName(p.Name) {
				t.Fatalf("peer %+v", p)
			}
		}
		again, merr := json.Marshal(peers)
		if merr != nil {
			return // a year that JSON cannot write
		}
		if back, err := decodePeersFile(again); err != nil || len(back) != len(peers) {
			t.Fatalf("%+v becomes %+v %v", peers, back, err)
		}
	})
}

func FuzzDecodeForget(f *testing.F) {
	f.Add(append([]byte{forgetKind}, "h3"...))
	f.Add([]byte{forgetKind})
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, err := decodeForget(b); err == nil && !wall.ValidName(name) {
			t.Fatalf("name %q", name)
		}
	})
}

// TestForget: a member that went without a word counts until somebody forgets it, on
// every node; one that is there cannot be forgotten, and one that comes back is a member.
func TestForget(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	b := start(t, "b", 1, nil, a.addr)
	for _, n := range []*node{a, b} {
		eventually(t, "two members", func() bool { return len(n.Alive()) == 2 })
		n.members.restore([]known{{Name: "c", Gossip: "127.0.0.1:1", Address: "127.0.0.1:2"}}, time.Now())
		if n.state("c") != StateDead {
			t.Fatalf("c is %q", n.state("c"))
		}
	}
	if err := a.Forget("b"); !errors.Is(err, report.ErrNotForgotten) || !strings.Contains(err.Error(), "b is alive") {
		t.Errorf("forgetting who is there: %v", err)
	}
	if err := a.Forget("x"); !errors.Is(err, report.ErrNotForgotten) || !strings.Contains(err.Error(), `"x"; away are c`) {
		t.Errorf("forgetting nobody: %v", err)
	}
	if err := a.Forget("c"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*node{a, b} {
		eventually(t, "c is forgotten", func() bool { return n.state("c") == "" })
	}
	c := start(t, "c", 1, nil, a.addr)
	eventually(t, "c is back", func() bool { return b.state("c") == StateAlive && len(c.Alive()) == 3 })
}

// TestNothingAfterClose: what memberlist's timers find out after Close is told to nobody:
// the caller that handed in the log and the callbacks may be gone.
func TestNothingAfterClose(t *testing.T) {
	t.Parallel()
	var told atomic.Int64
	a := start(t, "a", 1, func(c *Config) { c.OnMember = func(string, string, string) { told.Add(1) } })
	b := start(t, "b", 1, nil, a.addr)
	eventually(t, "both are there", func() bool { return a.state("b") == StateAlive && b.state("a") == StateAlive })
	m, err := a.member("b")
	if err != nil {
		t.Fatal(err)
	}
	of := a.site.place.instance
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	before, lines := told.Load(), a.log.String()
	n := &memberlist.Node{Name: m.instance.String(), Addr: net.IP{127, 0, 0, 1}, Port: 7950}
	d := &delegate{Gossip: a.Gossip, of: of, transport: a.site.transport.Load()}
	d.NotifyLeave(n)
	d.NotifyJoin(n)
	d.NotifyUpdate(n)
	d.NotifyConflict(n, n)
	d.NotifyMsg([]byte{forgetKind, 'b'})
	if after := a.log.String(); told.Load() != before || after != lines {
		t.Errorf("told %d times after Close, and logged %s", told.Load()-before, after[len(lines):])
	}
}
