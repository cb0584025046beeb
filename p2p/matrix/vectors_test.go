package matrix

import (
	"encoding/json"
	"testing"

	"seeder/docs"
)

// TestVectors: a node's column of the matrix is what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "state")
	ans, err := decode(v.Text("json"))
	if err != nil || len(ans.images) != 1 || ans.labels["zone"] != "a" {
		t.Fatalf("reads as %+v, %v", ans, err)
	}
	var r column
	if err := json.Unmarshal([]byte(v.Text("json")), &r); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	v.Is("json", string(b))
}
