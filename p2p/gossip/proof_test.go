package gossip

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

func newIdentity(t testing.TB) *trust.Identity {
	t.Helper()
	id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// said is a member as it says itself that it is.
func said(t testing.TB, id *trust.Identity, i instance, at string) *Member {
	t.Helper()
	meta, err := Meta{TransferAddress: ":7951", Protocol: 1, Version: "test"}.encode()
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(at)
	signed := signMeta(meta, i, addr, id)
	m, err := decodeMeta(signed)
	if err != nil {
		t.Fatal(err)
	}
	return memberOf(&memberlist.Node{Name: i.String(), Addr: addr.Addr().AsSlice(), Port: addr.Port(), Meta: signed}, i, m, "", "")
}

// TestProof: metadata counts as a node's own only for the instance, the address, the
// identity and the content that it was signed for.
func TestProof(t *testing.T) {
	t.Parallel()
	id, other := newIdentity(t), newIdentity(t)
	i, at := newInstance("b"), netip.MustParseAddrPort("10.0.0.2:7950")
	meta := []byte(said(t, id, i, at.String()).told)
	if len(meta) > wall.MaxMetaBytes || !verifyMeta(meta, i.String(), at) || claimedID(meta) != id.ID() {
		t.Fatalf("%d bytes are not the node's own: %s", len(meta), meta)
	}
	text, proof := splitMeta(meta)
	with := func(text string, proof []byte) []byte { return slices.Concat([]byte(text), []byte{0}, proof) }
	for what, ok := range map[string]bool{
		"a newer instance": verifyMeta(meta, i.next().String(), at),
		"another process":  verifyMeta(meta, newInstance("b").String(), at),
		"another address":  verifyMeta(meta, i.String(), netip.MustParseAddrPort("10.0.0.3:7950")),
		"another port":     verifyMeta(meta, i.String(), netip.MustParseAddrPort("10.0.0.2:7951")),
		"another identity": verifyMeta(with(string(text), slices.Concat(other.Public(), proof[32:])), i.String(), at),
		"other content":    verifyMeta(with(strings.Replace(string(text), ":7951", ":7952", 1), proof), i.String(), at),
		"a field more":     verifyMeta(with(string(text[:len(text)-1])+`,"l":true}`, proof), i.String(), at),
		"no proof":         verifyMeta(text, i.String(), at),
		"nothing":          verifyMeta(nil, i.String(), at),
		"a proof alone":    verifyMeta(with("", proof), i.String(), at),
	} {
		if ok {
			t.Errorf("%s passes", what)
		}
	}
	if m, err := decodeMeta(with(`{"id":"`+string(other.ID())+`","t":":7951","p":1,"v":"x"}`, proof)); err != nil || m.ID != id.ID() {
		t.Errorf("the id beside a proof counts: %+v, %v", m, err)
	}
}

// TestRivalsWithAnIdentity: who signs with an identity of its own takes the row of another
// member neither at that one's address, unless it answers there, nor elsewhere, also not
// where the other one was taken for dead for a moment; after ten minutes it does.
func TestRivalsWithAnIdentity(t *testing.T) {
	t.Parallel()
	victim, evil := newIdentity(t), newIdentity(t)
	ms := newMembers(newInstance("a"))
	row := func() Member {
		t.Helper()
		ms.mu.Lock()
		defer ms.mu.Unlock()
		if m := ms.byName["b"]; m != nil {
			return *m
		}
		return Member{}
	}
	own := said(t, victim, newInstance("b"), "10.0.0.2:7950")
	ms.seen(own)
	ms.prove(victim.ID(), time.Now())

	at := said(t, evil, newInstance("b"), "10.0.0.2:7950")
	ms.seen(at)
	if row().ID != victim.ID() {
		t.Fatal("who has not answered at the address has the row")
	}
	ms.answered(at.instance, true)
	if row().ID != evil.ID() {
		t.Fatal("a host whose data_dir was replaced has not its row")
	}
	ms.gone(at.instance)
	if row().ID != victim.ID() {
		t.Fatal("the row is lost")
	}

	newer := said(t, evil, own.instance.next(), "10.0.0.3:7950")
	ms.seen(newer)
	ms.answered(newer.instance, true)
	if row().ID != victim.ID() {
		t.Fatal("a newer instance with another identity has the row")
	}
	ms.gone(newer.instance)

	ms.seen(said(t, evil, newInstance("b"), "10.0.0.3:7950"))
	ms.prove(evil.ID(), time.Now())
	ms.mu.Lock()
	ms.byName["b"].owner.seen = time.Now().Add(-time.Hour) // nothing has happened for so long
	ms.mu.Unlock()
	ms.gone(own.instance)
	back := said(t, victim, own.instance, "10.0.0.2:7950")
	ms.seen(back)
	if row().ID != victim.ID() {
		t.Fatal("a rival keeps the name of a member that was taken for dead for a moment")
	}
	ms.gone(back.instance)
	ms.mu.Lock()
	ms.byName["b"].owner.seen = time.Now().Add(-ownerFor - time.Minute)
	ms.resolveName("b")
	ms.mu.Unlock()
	ms.seen(said(t, victim, newInstance("b"), "10.0.0.4:7950"))
	if row().ID != evil.ID() {
		t.Fatal("a host that was replaced long ago takes the name back")
	}
}

// TestMadeUpFirst: what somebody made up of a node counts for nothing once that node says
// itself where it is, in whichever order the two are heard of.
func TestMadeUpFirst(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	own := said(t, id, newInstance("b"), "10.0.0.2:7950")
	made := func(name string, i instance) *Member {
		m := said(t, id, own.instance, "10.0.0.2:7950") // the proof of another instance
		m.Name, m.instance, m.gossip, m.Address = name, i, "10.0.0.9:7950", "10.0.0.9:7951"
		return m
	}
	for _, m := range []*Member{made("b", own.instance.next()), made("b", newInstance("b")), made("c", newInstance("c"))} {
		ms := newMembers(newInstance("a"))
		ms.seen(m)
		ms.seen(said(t, id, own.instance, "10.0.0.2:7950"))
		ms.prove(id.ID(), time.Now())
		ms.confirmed[m.instance], ms.confirmed[own.instance] = true, true
		if got := ms.byName["b"]; got.gossip != "10.0.0.2:7950" || len(ms.conflictsLocked()) != 0 || !ms.contacts[own.instance].proved {
			t.Errorf("made up %s: %+v, %+v", m.instance, got, ms.conflictsLocked())
		}
	}
}
