package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/pem"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/docs"
	"seeder/p2p/trust"
)

// TestVectors: what gossip carries is what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "hint")
	version, err := strconv.ParseUint(v.Text("version"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	h := Hint{Reference: v.Text("reference"), Digest: digest.Digest(v.Text("digest")), Version: version, Holder: v.Text("holder")}
	b, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	v.IsHex("message", b)
	if got, err := decodeHint(v.Hex("message")); err != nil || got != h {
		t.Errorf("the hint decodes to %+v, %v", got, err)
	}

	v = docs.Protocol(t, "metadata")
	m, err := decodeMeta([]byte(v.Text("json")))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = m.encode(); err != nil {
		t.Fatal(err)
	}
	v.Is("json", string(b))
	i, err := parseInstance(v.Text("instance"))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(v.Text("address"))
	m.ID = ""
	if b, err = m.encode(); err != nil {
		t.Fatal(err)
	}
	id := vectorIdentity(t)
	v.IsHex("signed", signMeta(b, i, at, id))
	if meta := v.Hex("signed"); !verifyMeta(meta, i.String(), at) || claimedID(meta) != id.ID() {
		t.Error("the signed metadata does not verify")
	}

	v = docs.Protocol(t, "summary")
	g := New(Config{NodeName: v.Text("node")})
	hash, err := strconv.ParseUint(v.Text("hash"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	g.SetCatalog(hash)
	v.Is("state", string(g.news.state()))
	v.IsHex("message", append([]byte{summaryKind}, g.news.state()...))

	v = docs.Protocol(t, "forget")
	if name, err := decodeForget(v.Hex("message")); err != nil || name != v.Text("node") {
		t.Errorf("forget: %q %v", name, err)
	}

	v = docs.Protocol(t, "probe")
	v.Is("large-bytes", strconv.Itoa(largeProbeBytes))
	for _, size := range []int{len(v.Hex("message")), largeProbeBytes} {
		msg := make([]byte, size)
		copy(msg, v.Hex("message"))
		(&delegate{Gossip: g}).NotifyMsg(msg)
		if small, large := g.Arrived(Nonce(v.Hex("nonce"))); !small || large != (size == largeProbeBytes) {
			t.Errorf("a probe of %d bytes: %t, %t", size, small, large)
		}
	}
}

// vectorIdentity is the identity of docs/protocol.md.
func vectorIdentity(t *testing.T) *trust.Identity {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	b := pem.EncodeToMemory(&pem.Block{Type: "SEEDER NODE IDENTITY", Bytes: docs.Protocol(t, "identity").Hex("seed")})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := trust.LoadOrCreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPacketVector: the packet of docs/protocol.md is what sealing makes, and a node takes
// the hint in it.
func TestPacketVector(t *testing.T) {
	t.Parallel()
	v, hint := docs.Protocol(t, "packet"), docs.Protocol(t, "hint")
	packet, key := v.Hex("packet"), v.Hex("key")
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{8}, hint.Hex("message")...)
	head := append([]byte{1}, v.Hex("nonce")...)
	v.IsHex("packet", gcm.Seal(head, v.Hex("nonce"), want, append([]byte{1}, v.Text("label")...)))
	n := startAt(t, "a", "127.0.0.1:0", [][]byte{key}, nil)
	conn, err := net.Dial("udp", n.site.transport.Load().LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node takes the hint", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.hints) == 1 && n.hints[0].Reference == hint.Text("reference")
	})
}
