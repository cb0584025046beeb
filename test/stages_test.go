package test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// killAt kills the daemon as soon as it logs a text; the channel closes then.
func (d *daemon) killAt(text string) <-chan struct{} {
	done := make(chan struct{})
	d.log.when(text, func() {
		syscall.Kill(d.pid, syscall.SIGKILL)
		close(done)
	})
	return done
}

// follows waits until the host knows of the announcement that another one has.
func (h *host) follows(of *host) {
	h.t.Helper()
	eventually(h.t, 30*time.Second, h.name+" has the announcement of "+of.name, func() error {
		want, err := of.image(short)
		if err != nil {
			return err
		}
		if got, err := h.image(short); err != nil || got.Digest != want.Digest {
			return fmt.Errorf("%s, want %s, %w", got.Digest, want.Digest, err)
		}
		return nil
	})
}

// TestKilledAtEachStage: a daemon that is killed at the boundary between two
// stages of bringing an image goes on from there: the image gets ready, what was
// verified does not come again, no lease and nothing staged is left.
func TestKilledAtEachStage(t *testing.T) {
	needRoot(t)
	t.Parallel() // it waits most of the time
	n := cluster(t, newest, 2, "100mbit")
	a, b := n.hosts[0], n.hosts[1]
	b.seeder.stop(t, syscall.SIGTERM)
	b.startSeeder("SEEDER_LOG_LEVEL=debug")
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
		killed := b.seeder.killAt(stage)
		a.importImage(imageSpec{ref: short, says: says, random: size, seed: uint64(i)})
		a.run("announce", "--detach", short)
		select {
		case <-killed:
		case <-time.After(30 * time.Second):
			t.Fatalf("never logged: %s", stage)
		}
		b.seeder.wait(t, 10*time.Second)
		before, _ := b.linkBytes()
		b.startSeeder("SEEDER_LOG_LEVEL=debug")
		b.follows(a)
		b.ready(says)
		after, _ := b.linkBytes()
		t.Logf("killed at %s: %.1f MB came after it", stage, (after-before)/1e6)
		if late := strings.Contains(stage, "fetched") || strings.Contains(stage, "named") || strings.Contains(stage, "ready"); late && after-before > size/4 {
			t.Errorf("killed at %s: %.0f bytes came after it, though all was here", stage, after-before)
		}
	}
	eventually(t, time.Minute, "no lease of the work is left, nothing is staged", func() error {
		leases, previous := b.leasedForWork()
		staged := strings.TrimSpace(b.sh("ls " + dataDir + "/stage"))
		if len(leases) > 0 || previous != 1 || staged != "" {
			return fmt.Errorf("leases %q, %d earlier versions, staged %q", leases, previous, staged)
		}
		return nil
	})
	b.complete()

	// The announcer, killed while it reads the image and as soon as it has announced.
	for i, stage := range []string{`msg="image cut"`, `msg=announced`} {
		says := fmt.Sprintf("announced build %d", i)
		a.seeder.stop(t, syscall.SIGTERM)
		a.startSeeder("SEEDER_LOG_LEVEL=debug")
		killed := a.seeder.killAt(stage)
		a.importImage(imageSpec{ref: short, says: says, random: size, seed: uint64(100 + i)})
		err := a.try(nil, "announce", "--detach", short)
		<-killed
		a.seeder.wait(t, 10*time.Second)
		a.startSeeder()
		if err != nil { // somebody reads that and tries again
			a.run("announce", "--detach", short)
		}
		b.follows(a)
		b.ready(says)
		a.ready(says)
	}
}
