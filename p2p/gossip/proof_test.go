package gossip

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

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
	meta, err := Meta{ID: id.ID(), TransferAddress: ":7951", Protocol: 1, Version: "test"}.encode()
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
	meta := said(t, id, i, at.String()).told
	if len(meta) > maxMetaBytes || !verifyMeta(meta, i.String(), at, id.ID()) {
		t.Fatalf("%d bytes are not the node's own: %s", len(meta), meta)
	}
	for what, ok := range map[string]bool{
		"a newer instance":   verifyMeta(meta, i.next().String(), at, id.ID()),
		"another process":    verifyMeta(meta, newInstance("b").String(), at, id.ID()),
		"another address":    verifyMeta(meta, i.String(), netip.MustParseAddrPort("10.0.0.3:7950"), id.ID()),
		"another port":       verifyMeta(meta, i.String(), netip.MustParseAddrPort("10.0.0.2:7951"), id.ID()),
		"another identity":   verifyMeta(meta, i.String(), at, other.ID()),
		"other content":      verifyMeta(strings.Replace(meta, ":7951", ":7952", 1), i.String(), at, id.ID()),
		"a field more":       verifyMeta(strings.Replace(meta, `,"k"`, `,"l":true,"k"`, 1), i.String(), at, id.ID()),
		"a field behind":     verifyMeta(meta[:len(meta)-1]+`,"l":true}`, i.String(), at, id.ID()),
		"no proof":           verifyMeta(`{"id":"`+string(id.ID())+`"}`, i.String(), at, id.ID()),
		"nothing":            verifyMeta("", i.String(), at, ""),
		"a proof of nothing": verifyMeta(meta[len(meta)-proofSuffix:], i.String(), at, id.ID()),
	} {
		if ok {
			t.Errorf("%s passes", what)
		}
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
	ms.settle("b")
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
