package trust

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/internal/disk/disktest"
)

const (
	machineA = "0123456789abcdef0123456789abcdef"
	machineB = "fedcba9876543210fedcba9876543210"
)

// start is what a daemon on a machine does, and its id.
func startOn(t *testing.T, path, machine string) (NodeID, string) {
	t.Helper()
	aside, err := BindIdentity(path, machine)
	if err != nil {
		t.Fatal(err)
	}
	id, err := LoadOrCreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	return id.ID(), aside
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A copy of data_dir on another machine gets an identity of its own; the same machine and
// a copy of the identity alone keep it.
func TestIdentityIsBoundToItsMachine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "identity")
	first, aside := startOn(t, path, machineA)
	if again, _ := startOn(t, path, machineA); again != first || aside != "" {
		t.Fatalf("the same machine has %s, then %s; %q is set aside", first, again, aside)
	}
	if b, err := os.ReadFile(path + boundSuffix); err != nil || strings.Contains(string(b), machineA) {
		t.Fatalf("the id of the machine is written down: %q, %v", b, err)
	}
	clone := filepath.Join(t.TempDir(), "identity")
	copyFile(t, path, clone)
	copyFile(t, path+boundSuffix, clone+boundSuffix)
	second, aside := startOn(t, clone, machineB)
	if second == first || aside != clone+OtherMachine {
		t.Fatalf("the clone has %s like the first; %q is set aside", second, aside)
	}
	if again, aside := startOn(t, clone, machineB); again != second || aside != "" {
		t.Fatalf("the clone has %s, then %s; %q is set aside", second, again, aside)
	}
	moved := filepath.Join(t.TempDir(), "identity")
	copyFile(t, path, moved)
	if id, aside := startOn(t, moved, machineB); id != first || aside != "" {
		t.Fatalf("the identity that somebody moved is %s, was %s; %q is set aside", id, first, aside)
	}
	if id, aside := startOn(t, path, ""); id != first || aside != "" {
		t.Fatalf("without an id of the machine it is %s, was %s; %q is set aside", id, first, aside)
	}
}

// A start that was cut after the identity was set aside makes one new identity, not two.
func TestIdentityCutWhileSetAside(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "identity")
	first, _ := startOn(t, path, machineA)
	if err := os.Rename(path, path+OtherMachine); err != nil { // what a cut leaves
		t.Fatal(err)
	}
	second, aside := startOn(t, path, machineB)
	third, _ := startOn(t, path, machineB)
	if second == first || second != third || aside != "" {
		t.Fatalf("%s, %s, %s; %q is set aside", first, second, third, aside)
	}
	copyFile(t, path+OtherMachine, path)
	if id, _ := startOn(t, path, machineB); id != first {
		t.Fatalf("what was set aside is %s, was %s", id, first)
	}
}

func TestMachineID(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{machineA + "\n": machineA, "uninitialized\n": "", "": "", "abc\n": ""} {
		path := filepath.Join(t.TempDir(), "machine-id")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := MachineID(path); got != want {
			t.Errorf("%q is %q, want %q", content, got, want)
		}
	}
	if got := MachineID(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("none is %q", got)
	}
}

// However a start on another machine is cut, the next one has an identity that is not the
// copied one, and keeps it: no id that was told is taken back.
func TestBindIdentityCut(t *testing.T) {
	t.Parallel()
	template := filepath.Join(t.TempDir(), "identity")
	first, _ := startOn(t, template, machineA)
	disktest.Crashes(t, func(dir string) {
		copyFile(t, template, filepath.Join(dir, "identity"))
		copyFile(t, template+boundSuffix, filepath.Join(dir, "identity"+boundSuffix))
	}, func(dir string, ack func(string)) {
		path := filepath.Join(dir, "identity")
		if _, err := BindIdentity(path, machineB); err != nil {
			panic(err)
		}
		id, err := LoadOrCreateIdentity(path)
		if err != nil {
			panic(err)
		}
		ack(string(id.ID()))
	}, func(t *testing.T, s disktest.State) {
		id, _ := startOn(t, filepath.Join(s.Dir, "identity"), machineB)
		if id == first || len(s.Acked) > 0 && !s.Has(string(id)) {
			t.Errorf("after %v it is %s, the copied one was %s", s.Acked, id, first)
		}
	})
}
