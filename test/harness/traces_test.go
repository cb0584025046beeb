package harness

import (
	"fmt"
	"os"
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
