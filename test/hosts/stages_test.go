package hosts

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// killAt kills the daemon as soon as it logs a text; the channel closes then.
func killAt(d *harness.Daemon, text string) <-chan struct{} {
	done := make(chan struct{})
	d.Log.When(text, func() {
		syscall.Kill(d.PID, syscall.SIGKILL)
		close(done)
	})
	return done
}

// follows waits until the host knows of the announcement that another one has.
func follows(h *harness.Host, of *harness.Host) {
	h.T.Helper()
	harness.Eventually(h.T, 30*time.Second, h.Name+" has the announcement of "+of.Name, func() error {
		want, err := of.Image(harness.ShortName)
		if err != nil {
			return err
		}
		if got, err := h.Image(harness.ShortName); err != nil || got.Digest != want.Digest {
			return fmt.Errorf("%s, want %s, %w", got.Digest, want.Digest, err)
		}
		return nil
	})
}

// TestKilledAtEachStage: a daemon that is killed at the boundary between two
// stages of bringing an image goes on from there: the image gets ready, what was
// verified does not come again, no lease and nothing staged is left.
func TestKilledAtEachStage(t *testing.T) {
	harness.NeedRoot(t)
	t.Parallel() // it waits most of the time
	n := harness.NewCluster(t, harness.Newest, 2, "100mbit")
	a, b := n.Hosts[0], n.Hosts[1]
	b.Seeder.Stop(t, syscall.SIGTERM)
	b.StartSeeder("SEEDER_LOG_LEVEL=debug")
	const size = 4 << 20
	for i, stage := range []string{
		`msg="catalog updated"`,
		`msg="got the seed index"`,
		`msg="started to fetch"`,
		`msg="blob committed"`,
		`msg="layer unpacked"`,
		`msg=fetched`,
		`msg=named`,
		`msg=ready component=node`,
	} {
		says := fmt.Sprintf("build %d", i)
		killed := killAt(b.Seeder, stage)
		a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Random: size, Seed: uint64(i)})
		a.Run("announce", "--detach", harness.ShortName)
		select {
		case <-killed:
		case <-time.After(30 * time.Second):
			t.Fatalf("never logged: %s", stage)
		}
		b.Seeder.Wait(t, 10*time.Second)
		before, _ := harness.LinkBytes(b)
		b.StartSeeder("SEEDER_LOG_LEVEL=debug")
		follows(b, a)
		b.Ready(says)
		after, _ := harness.LinkBytes(b)
		t.Logf("killed at %s: %.1f MB came after it", stage, (after-before)/1e6)
		if late := strings.Contains(stage, "fetched") || strings.Contains(stage, "named") || strings.Contains(stage, "ready"); late && after-before > size/4 {
			t.Errorf("killed at %s: %.0f bytes came after it, though all was here", stage, after-before)
		}
	}
	harness.Eventually(t, time.Minute, "no lease of the work is left, nothing is staged", func() error {
		leases, previous := leasedForWork(b)
		staged := strings.TrimSpace(b.Sh("ls " + dataDir + "/stage"))
		if len(leases) > 0 || previous != 1 || staged != "" {
			return fmt.Errorf("leases %q, %d earlier versions, staged %q", leases, previous, staged)
		}
		return nil
	})
	complete(b)

	// The announcer, killed while it reads the image and as soon as it has announced.
	for i, stage := range []string{`msg="image cut"`, `msg=announced`} {
		says := fmt.Sprintf("announced build %d", i)
		a.Seeder.Stop(t, syscall.SIGTERM)
		a.StartSeeder("SEEDER_LOG_LEVEL=debug")
		killed := killAt(a.Seeder, stage)
		a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Random: size, Seed: uint64(100 + i)})
		err := a.Try(nil, "announce", "--detach", harness.ShortName)
		<-killed
		a.Seeder.Wait(t, 10*time.Second)
		a.StartSeeder()
		if err != nil { // somebody reads that and tries again
			a.Run("announce", "--detach", harness.ShortName)
		}
		follows(b, a)
		b.Ready(says)
		a.Ready(says)
	}
}
