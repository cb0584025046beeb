package swarm

import (
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/docs"
	"seeder/store/chunk"
)

// TestVectors: bitmaps and owners are what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "bitmap")
	var in struct {
		N      int   `json:"n"`
		Chunks []int `json:"chunks"`
	}
	if err := json.Unmarshal([]byte(v.Text("set")), &in); err != nil {
		t.Fatal(err)
	}
	b := chunk.NewBitmap(in.N)
	for _, c := range in.Chunks {
		b.Set(c)
	}
	v.Is("bytes", hex.EncodeToString(b.AppendBinary(nil, in.N)))
	v.Is("padded-to-64", hex.EncodeToString(b.AppendBinary(nil, 64*len(b))))
	if got, err := chunk.ParseBitmap(v.Hex("bytes"), in.N); err != nil || !reflect.DeepEqual(got, b) {
		t.Errorf("parsed as %v, %v", got, err)
	}

	v = docs.Protocol(t, "owners")
	members := strings.Split(v.Text("members"), ",")
	v.Is("owners", strings.Join(Owners(digest.Digest(v.Text("seed")), members, 3), ","))
}
