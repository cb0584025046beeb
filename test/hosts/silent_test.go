package hosts

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// firstFree is the lowest descriptor that a daemon has not open.
func firstFree(d *harness.Daemon, t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.PID))
	if err != nil {
		t.Fatal(err)
	}
	var open []int
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, n)
	}
	for n := 0; ; n++ {
		if !slices.Contains(open, n) {
			return n
		}
	}
}

// TestNoCommandWaitsForEver: a daemon without a free descriptor refuses commands and says
// why, and the others see that it is alive and does not answer; of one that is stopped a
// command says so. Each ends with exit code 4, and all is well afterwards.
func TestNoCommandWaitsForEver(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	commands := [][]string{{"status"}, {"images"}, {"members"}, {"withdraw", "--purge", "other:v1"}, {"wait"}}

	before := limitFiles(a, a.Seeder, strconv.Itoa(firstFree(a.Seeder, t)))
	for _, args := range commands {
		err := a.Try(nil, args...)
		if harness.ExitCode(err) != 4 || !strings.Contains(err.Error(), "no free file descriptor") {
			t.Errorf("%v without descriptors: %v", args, err)
		}
	}
	c := n.AddHost(harness.Newest) // which has no connection to it yet
	// A connection that has ended leaves a descriptor free, and c would connect with that.
	limit := func() { limitFiles(a, a.Seeder, strconv.Itoa(firstFree(a.Seeder, t))) }
	limit()
	c.StartSeeder("SEEDER_GOSSIP_JOIN=" + b.Address)
	harness.Eventually(t, 30*time.Second, "another host sees that it does not answer", func() error {
		limit()
		var members report.Members
		if err := c.Try(&members, "members"); err != nil {
			return err
		}
		for _, m := range members.Members {
			if m.Name == a.Name && strings.Contains(m.Reason, "is alive, but does not answer") {
				return nil
			}
		}
		return fmt.Errorf("members: %+v", members)
	})
	limitFiles(a, a.Seeder, before)
	a.AwaitMembers(3)

	a.Seeder.Freeze()
	for _, args := range commands {
		err := a.Try(nil, args...)
		if harness.ExitCode(err) != 4 || !strings.Contains(err.Error(), "does not answer; it last did at") || !strings.Contains(err.Error(), "is stopped") {
			t.Errorf("%v of a stopped daemon: %v", args, err)
		}
	}
	a.Seeder.Thaw()
	a.AwaitMembers(3)
	b.Ready("hello")
}
