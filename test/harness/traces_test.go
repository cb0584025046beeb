package harness

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// TestNothingIsLeft: what a run that is killed in the middle of a test made goes
// with it or is removed by the next run.
func TestNothingIsLeft(t *testing.T) {
	if os.Getenv("SEEDER_TEST_TO_BE_KILLED") != "" {
		h := NewNetwork(t, "100mbit").AddHost(Newest)
		h.StartContainerd()
		h.StartSeeder()
		h.ImportImage(ImageSpec{Ref: ShortName, Says: "hello", Seed: 1})
		h.Ctr("run", "--detach", FullName, "forever", "/bin/sh", "-c", "while :; do busybox sleep 1; done")
		fmt.Println("up")
		time.Sleep(time.Hour) // is killed here
	}
	NeedRoot(t)
	NothingIsLeft(t)
}

// TestAnotherTempDir: a run that has its temporary files elsewhere sees only the cgroups
// of this one, and does not take them for those of a killed run.
func TestAnotherTempDir(t *testing.T) {
	n := NewNetwork(t, "")
	n.AddHost(Newest)
	t.Setenv("TMPDIR", t.TempDir())
	if dead := deadNetworks(); slices.Contains(dead, n.name) {
		t.Errorf("%s, which is in use, is one of the dead networks %q", n.name, dead)
	}
}
