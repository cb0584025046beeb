package catalog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

// TestBitFlipsWhileOpen: a bit of the file that flips below an open catalog changes nothing
// of what this node says. Whatever the next write comes to, the next daemon opens the file
// or sets it aside, and takes records again.
func TestBitFlipsWhileOpen(t *testing.T) {
	debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(false)
	id := newIdentity(t)
	panics, failed, emptied := 0, 0, 0
	const flips = 40
	for seed := range uint64(flips) {
		rng := rand.New(rand.NewPCG(seed, 9))
		path := filepath.Join(t.TempDir(), "catalog.db")
		c, err := Open(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if _, err := c.Merge(sign(t, id, announcement(fmt.Sprintf("docker.io/library/a%d:1", i), 1, "x"))); err != nil {
				t.Fatal(err)
			}
		}
		before := c.Hash()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := rng.IntN(len(b))
		if _, err := f.WriteAt([]byte{b[at] ^ 1<<rng.IntN(8)}, int64(at)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if c.Hash() != before || len(c.All()) != 20 {
			t.Fatalf("seed %d: the open catalog has changed", seed)
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					panics++
				}
			}()
			if _, err := c.Merge(sign(t, id, announcement("docker.io/library/later:1", 1, "y"))); err != nil {
				failed++
			}
		}()
		left := filepath.Join(t.TempDir(), "catalog.db") // as after the end of the process
		if b, err = os.ReadFile(path); err == nil {
			err = os.WriteFile(left, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		again, err := Open(Config{Path: left})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(again.All()) < 20 {
			emptied++
		}
		if _, err := again.Merge(sign(t, id, announcement("docker.io/library/new:1", 1, "z"))); err != nil {
			t.Errorf("seed %d: write after the restart: %v", seed, err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("of %d flips %d made the next write panic, %d made it fail, and after %d a restart lost records, which other nodes have", flips, panics, failed, emptied)
}
