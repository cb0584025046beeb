package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"testing"

	"seeder/docs"
)

// TestVectors: keys, identities, certificates and signatures are what
// docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "keys")
	s := secrets(t, v.Text("line"))
	v.IsHex("secret", s[0])
	v.IsHex("gossip-key", s.GossipKeys()[0])
	v.IsHex("ca-seed", s[0].derive("cluster CA", ed25519.SeedSize))
	ca, key, err := s[0].ca()
	if err != nil {
		t.Fatal(err)
	}
	v.IsHex("ca-public", key.Public().(ed25519.PublicKey))
	v.IsHex("ca-certificate", ca.Raw)

	v = docs.Protocol(t, "token")
	secret, err := new(Stretcher).SecretOfToken([]byte(v.Text("password")))
	if err != nil {
		t.Fatal(err)
	}
	v.IsHex("secret", secret)
	v.IsHex("gossip-key", Secrets{secret}.GossipKeys()[0])

	v = docs.Protocol(t, "identity")
	id := &Identity{private: ed25519.NewKeyFromSeed(v.Hex("seed"))}
	v.IsHex("public", id.Public())
	v.Is("id", string(id.ID()))
	v.Is("pem-body", base64.StdEncoding.EncodeToString(id.private.Seed()))
	leaf, err := leafOf(id, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	v.IsHex("certificate", leaf.Certificate[0])

	v = docs.Protocol(t, "signature")
	signature := id.Sign(v.Text("domain"), []byte(v.Text("payload")))
	v.Is("input", hex.EncodeToString(signed(v.Text("domain"), []byte(v.Text("payload")))))
	v.IsHex("signature", signature)
}
