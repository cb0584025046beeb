package p2ptest

import (
	"bytes"
	"testing"

	"seeder/p2p"
)

// TestConformance: what the store in memory promises to the tests of nodes the real store
// promises, too; see the test of that name in cmd/seeder.
func TestConformance(t *testing.T) {
	Conformance(t, Subject{
		Open: func(*testing.T) p2p.Store { return NewStore() },
		Add: func(_ *testing.T, s p2p.Store, ref string, seed uint64) {
			s.(*Store).Add(ref, bytes.Repeat([]byte{byte(seed), 1, 2, 3}, 1000), 1<<10)
		},
	})
}
