package trust

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/internal/disk/disktest"
)

// TestIdentityCut: an identity that was used once is there for good, and no cut
// leaves one that cannot be read.
func TestIdentityCut(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		for range 2 { // made, and loaded
			id, err := LoadOrCreateIdentity(filepath.Join(dir, "identity"))
			if err != nil {
				panic(err)
			}
			ack(string(id.ID()))
		}
	}, func(t *testing.T, s disktest.State) {
		id, err := LoadOrCreateIdentity(filepath.Join(s.Dir, "identity"))
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Acked) > 0 && !s.Has(string(id.ID())) {
			t.Errorf("it has become %s", id.ID())
		}
	})
}

// TestIdentityFoundIsKept: a process that was killed after it had made the
// identity leaves a name that no power cut may take once another uses it.
func TestIdentityFoundIsKept(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		path := filepath.Join(dir, "identity")
		made, err := LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
		if err != nil {
			panic(err)
		}
		f, err := os.Create(path)
		if err != nil {
			panic(err)
		}
		block := pem.Block{Type: pemType, Bytes: made.private.Seed()}
		if err := errors.Join(pem.Encode(f, &block), f.Sync(), f.Close()); err != nil { // the file, not its name
			panic(err)
		}
		id, err := LoadOrCreateIdentity(path)
		if err != nil {
			panic(err)
		}
		ack(string(id.ID()))
	}, func(t *testing.T, s disktest.State) {
		id, err := LoadOrCreateIdentity(filepath.Join(s.Dir, "identity"))
		if len(s.Acked) > 0 && (err != nil || !s.Has(string(id.ID()))) {
			t.Errorf("%v %v, want %v", id, err, s.Acked)
		}
	})
}

// TestDamagedIdentity: a new identity would make the node a stranger, so that the
// damage of the old one is for people to fix.
func TestDamagedIdentity(t *testing.T) {
	t.Parallel()
	good := filepath.Join(t.TempDir(), "identity")
	if _, err := LoadOrCreateIdentity(good); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	dir := disktest.TempDir(t)
	path := filepath.Join(dir, "identity")
	refused := func(name string) {
		t.Helper()
		before, _ := os.ReadFile(path)
		_, err := LoadOrCreateIdentity(path)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restore it, or remove it") {
			t.Errorf("%s: %v, want an error that names the file and the fix", name, err)
		}
		if after, _ := os.ReadFile(path); string(after) != string(before) {
			t.Errorf("%s: it was changed", name)
		}
	}
	for n := range len(whole) - 1 { // the last byte is a newline
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		refused("cut")
	}
	if err := os.WriteFile(path, make([]byte, len(whole)), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("zeros")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	refused("a directory")
}

// TestIdentityWithoutRoom: no room, no identity, and nothing half written.
func TestIdentityWithoutRoom(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	dir := disktest.TempDir(t)
	for limit := range uint64(100) {
		disktest.LimitFiles(t, limit)
		if _, err := LoadOrCreateIdentity(filepath.Join(dir, "identity")); err == nil || !strings.Contains(err.Error(), dir) {
			t.Fatalf("%d bytes of room: %v", limit, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("%d bytes of room: left behind: %v", limit, left)
		}
	}
	disktest.LimitFiles(t, disktest.NoLimit)
	if _, err := LoadOrCreateIdentity(filepath.Join(dir, "identity")); err != nil {
		t.Error(err)
	}
}
