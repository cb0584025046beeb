package hosts

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// descriptors lists those that a daemon has open, by number, and what they are.
func descriptors(t *testing.T, d *harness.Daemon) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	open := map[int]string{}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else just closed
			open[n] = to
		}
	}
	return open
}

// spareOf are the descriptors that listeners keep to refuse with, one each.
func spareOf(open map[int]string) (spare []int) {
	for n, to := range open {
		if to == os.DevNull && n > 2 { // standard input is, too
			spare = append(spare, n)
		}
	}
	return spare
}

// takeDescriptors sets the limit of a daemon to the lowest free descriptor, after it has set
// it to limit: no file can be opened then. The spare descriptors of its listeners must be
// below, or the daemon cannot use them. So connections are held open until they take all
// free descriptors below the spare ones.
func takeDescriptors(t *testing.T, h *harness.Host, limit string, spares int) {
	t.Helper()
	limitFiles(h, h.Seeder, limit)
	for range 64 {
		var open map[int]string
		spare, free := 0, 0
		harness.Eventually(t, 5*time.Second, "each listener has its spare descriptor", func() error {
			open = descriptors(t, h.Seeder)
			now := spareOf(open)
			if len(now) != spares { // while a listener refuses, it has none
				return fmt.Errorf("%d of %d: %v", len(now), spares, open)
			}
			spare = slices.Max(now)
			return nil
		})
		for open[free] != "" {
			free++
		}
		if free > spare {
			limitFiles(h, h.Seeder, strconv.Itoa(free))
			return
		}
		conn, err := net.Dial("unix", h.Path("/run/seeder/seeder.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		harness.Eventually(t, 5*time.Second, "the connection is accepted", func() error {
			if descriptors(t, h.Seeder)[free] == "" {
				return fmt.Errorf("descriptor %d is free", free)
			}
			return nil
		})
	}
	t.Fatal("64 connections left a descriptor free below the spare ones")
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

	spares := len(spareOf(descriptors(t, a.Seeder)))
	before := limitFiles(a, a.Seeder, "4096") // more than it needs
	for _, args := range commands {
		// A connection or file that is closed meanwhile leaves a descriptor free.
		harness.Eventually(t, 10*time.Second, fmt.Sprintf("%v without descriptors is refused", args), func() error {
			takeDescriptors(t, a, before, spares)
			err := a.Try(nil, args...)
			if harness.ExitCode(err) != 4 || !strings.Contains(err.Error(), "no free file descriptor") {
				return fmt.Errorf("it ended with %v", err)
			}
			return nil
		})
	}
	c := n.AddHost(harness.Newest) // which has no connection to it yet
	takeDescriptors(t, a, before, spares)
	c.StartSeeder("SEEDER_GOSSIP_JOIN=" + b.Address)
	harness.Eventually(t, 30*time.Second, "another host sees that it does not answer", func() error {
		takeDescriptors(t, a, before, spares)
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
