package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
)

// firstFree is the lowest descriptor that a daemon has not open.
func (d *daemon) firstFree(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid))
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
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	commands := [][]string{{"status"}, {"images"}, {"members"}, {"withdraw", "--purge", "other:v1"}, {"wait"}}

	before := a.limitFiles(a.seeder, strconv.Itoa(a.seeder.firstFree(t)))
	for _, args := range commands {
		err := a.try(nil, args...)
		if exitCode(err) != 4 || !strings.Contains(err.Error(), "no free file descriptor") {
			t.Errorf("%v without descriptors: %v", args, err)
		}
	}
	c := n.addHost(newest) // which has no connection to it yet
	c.startSeeder("SEEDER_GOSSIP_JOIN=" + b.address)
	eventually(t, 30*time.Second, "another host sees that it does not answer", func() error {
		a.limitFiles(a.seeder, strconv.Itoa(a.seeder.firstFree(t))) // a connection that has ended leaves one free
		var members report.Members
		if err := c.try(&members, "members"); err != nil {
			return err
		}
		for _, m := range members.Members {
			if m.Name == a.name && strings.Contains(m.Reason, "is alive, but does not answer") {
				return nil
			}
		}
		return fmt.Errorf("members: %+v", members)
	})
	a.limitFiles(a.seeder, before)
	a.awaitMembers(3)

	a.seeder.freeze()
	for _, args := range commands {
		err := a.try(nil, args...)
		if exitCode(err) != 4 || !strings.Contains(err.Error(), "does not answer; it last did at") || !strings.Contains(err.Error(), "is stopped") {
			t.Errorf("%v of a stopped daemon: %v", args, err)
		}
	}
	a.seeder.thaw()
	a.awaitMembers(3)
	b.ready("hello")
}
