package main

import (
	"bytes"
	"testing"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/store"
	"seeder/store/ctrd"
	"seeder/store/storetest"
)

// TestConformance: the real store keeps the promises of the one with which nodes are
// tested.
func TestConformance(t *testing.T) {
	p2ptest.Conformance(t, p2ptest.Subject{
		Open: func(t *testing.T) p2p.Store {
			s, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Containerd: ctrd.Config{Address: ctrd.Embedded}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return storeAdapter{s}
		},
		Add: func(t *testing.T, s p2p.Store, ref string, seed uint64) {
			img := storetest.NewImage(t, ref, seed)
			if _, err := s.(storeAdapter).ImportArchive(t.Context(), bytes.NewReader(img.OCIArchive(t)), ""); err != nil {
				t.Fatal(err)
			}
		},
	})
}
