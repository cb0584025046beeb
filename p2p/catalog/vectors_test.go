package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"seeder/docs"
	"seeder/p2p/trust"
)

// vectorIdentity is the identity of docs/protocol.md.
func vectorIdentity(t *testing.T) *trust.Identity {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	seed := docs.Protocol(t, "identity").Hex("seed")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "SEEDER NODE IDENTITY", Bytes: seed}), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := trust.LoadOrCreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestVectors: records and summaries are what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	id := vectorIdentity(t)
	c := open(t, Config{})
	for _, name := range []string{"record", "withdrawal"} {
		v := docs.Protocol(t, name)
		var a Announcement
		if err := json.Unmarshal([]byte(v.Text("payload")), &a); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r := sign(t, id, a)
		v.Is("payload", string(r.payload))
		v.IsHex("record", r.Encode())
		h := r.Hash()
		v.IsHex("hash", h[:])
		decoded, err := Decode(v.Hex("record"))
		if err != nil || decoded.AnnouncedBy() != id.ID() {
			t.Fatalf("%s: %v, by %s", name, err, decoded.AnnouncedBy())
		}
		if _, err := c.Merge(decoded); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Get(a.Reference); got.Hash() != r.Hash() {
			t.Errorf("%s does not win", name)
		}
		v = docs.Protocol(t, "summary-of-"+name)
		v.Is("bucket", fmt.Sprint(bucketOf(a.Reference)))
		v.Is("bucket-value", fmt.Sprintf("%016x", c.Buckets()[bucketOf(a.Reference)]))
		v.Is("catalog-hash", fmt.Sprint(c.Hash()))
		sum := sha256.Sum256(c.Buckets().Encode())
		v.Is("encoding-sha256", hex.EncodeToString(sum[:]))
	}
}
