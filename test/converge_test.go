package test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
)

// TestLateJoiner: a host that joins later gets what was announced before.
func TestLateJoiner(t *testing.T) {
	n := cluster(t, newest, 2, "")
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder()
	late.ready("hello")
}

// TestHostDownDuringAnnounce: a host that was off or cut off does not hold up
// the others, is shown as such, and gets the image when it is back.
func TestHostDownDuringAnnounce(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 4, "")
	a, off, cut := n.hosts[0], n.hosts[1], n.hosts[2]
	off.seeder.stop(t, syscall.SIGTERM)
	cut.pull()
	a.importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	start := time.Now()
	a.run("announce", short)
	t.Logf("announced with a host off and one cut off in %v", time.Since(start).Round(time.Millisecond))
	n.hosts[3].ready("hello")
	if cells, err := a.states(short); err != nil || cells[cut.name].State == report.Ready {
		t.Errorf("the matrix shows a host that is cut off as %+v, %v", cells[cut.name], err)
	}

	off.startSeeder()
	off.ready("hello")
	cut.push()
	start = time.Now()
	cut.ready("hello")
	t.Logf("the host that was cut off was ready %v after", time.Since(start).Round(time.Millisecond))
}

// TestRemovedImageComesBack: ctr images rm is fixed without a command, and
// without the network where the bytes are still here.
func TestRemovedImageComesBack(t *testing.T) {
	n := cluster(t, newest, 2, "")
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	for _, h := range n.hosts { // the announcer too
		h.ready("hello")
		h.ctr(append([]string{"images", "rm", "--sync"}, h.names()...)...)
		eventually(t, 30*time.Second, "the image is back on "+h.name, func() error {
			img, err := h.imageStatus(full)
			if err == nil && img == nil {
				err = errors.New("CRI does not know it")
			}
			return err
		})
		h.ready("hello")
		h.complete()
	}
}

// names are those of the test image in containerd, the one by config digest too.
func (h *host) names() []string {
	h.t.Helper()
	var out []string
	for name := range strings.Lines(h.ctr("images", "ls", "-q")) {
		out = append(out, strings.TrimSpace(name))
	}
	return out
}

// TestRestart: the catalog survives a restart of one node and of all at once, by
// SIGTERM and by kill -9.
func TestRestart(t *testing.T) {
	n := cluster(t, newest, 3, "")
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	a.run("announce", short)
	row, err := a.image(short)
	if err != nil {
		t.Fatal(err)
	}
	b.seeder.stop(t, syscall.SIGTERM)
	a.awaitMembers(2)
	b.startSeeder()
	a.awaitMembers(3)
	b.ready("hello")

	for _, h := range n.hosts {
		h.seeder.stop(t, syscall.SIGKILL)
	}
	c.startSeeder() // alone it still knows
	alone, err := c.image(short)
	if err != nil || alone.Digest != row.Digest || alone.Version != row.Version {
		t.Errorf("after a restart %s alone knows %+v, %v; want %s, version %d", c.name, alone, err, row.Digest, row.Version)
	}
	b.ctr(append([]string{"images", "rm", "--sync"}, b.names()...)...)
	a.startSeeder()
	b.startSeeder()
	for _, h := range n.hosts {
		h.awaitMembers(3)
		h.ready("hello")
	}
}

// TestNewBuildMovesEveryHost: announcing a new build under the same reference
// moves all hosts; on each the reference stands for the old build or the new one,
// complete, at every moment.
func TestNewBuildMovesEveryHost(t *testing.T) {
	n := cluster(t, newest, 3, "200mbit")
	n.hosts[0].importImage(imageSpec{ref: short, says: "one", payload: 8 << 20, random: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	seen := make([][]digest.Digest, len(n.hosts))
	for i, h := range n.hosts[1:] {
		cl := h.client()
		wg.Go(func() { seen[i+1] = h.watch(ctx, cl) })
	}
	n.hosts[0].importImage(imageSpec{ref: short, says: "two", payload: 8 << 20, random: 4 << 20, seed: 2})
	n.hosts[0].run("announce", short)
	for _, h := range n.hosts {
		h.ready("two")
	}
	stop()
	wg.Wait()
	for i, h := range n.hosts[1:] {
		if len(seen[i+1]) != 2 {
			t.Errorf("on %s the reference stood for %v, want the old build and then the new one", h.name, seen[i+1])
		}
	}
}

// TestImportByHand: a new build that somebody imports is not put back to the
// announced one: on the host that announced it is announced again by itself, on
// another host it waits for its announcement.
func TestImportByHand(t *testing.T) {
	n := cluster(t, newest, 3, "")
	a, b := n.hosts[0], n.hosts[1]
	a.importImage(imageSpec{ref: short, says: "one", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	a.importImage(imageSpec{ref: short, says: "two", payload: 1 << 20, seed: 2})
	for _, h := range n.hosts {
		h.becomes("two")
	}
	b.importImage(imageSpec{ref: short, says: "three", payload: 1 << 20, seed: 3})
	b.inState(b, report.Excluded, "somebody has since put sha256:")
	if got := b.runContainer(full); got != "three" {
		t.Errorf("after the import by hand a container prints %q", got)
	}
	b.run("announce", short)
	for _, h := range n.hosts {
		h.becomes("three")
		h.complete()
	}
}

// becomes waits until a container from the image prints says.
func (h *host) becomes(says string) {
	h.t.Helper()
	eventually(h.t, 30*time.Second, h.name+" runs "+says, func() error {
		cmd := h.ctrCmd("run", "--rm", full, "c"+strconv.FormatInt(time.Now().UnixNano(), 36))
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != says {
			return fmt.Errorf("prints %q, %w", out, errors.Join(err))
		}
		return nil
	})
	h.ready(says)
}

// watch looks at the reference all the time, fails the test where it is not there
// or stands for something incomplete, and returns what it stood for.
func (h *host) watch(ctx context.Context, cl *client.Client) (targets []digest.Digest) {
	for looks := 0; ; looks++ {
		img, err := cl.ImageService().Get(ctx, full)
		if ctx.Err() != nil {
			h.t.Logf("looked %d times at the reference on %s", looks, h.name)
			return targets
		}
		if err != nil {
			h.t.Errorf("the reference is away on %s: %v", h.name, err)
			return targets
		}
		if len(targets) == 0 || targets[len(targets)-1] != img.Target.Digest {
			targets = append(targets, img.Target.Digest)
		}
		ok, _, _, missing, err := images.Check(ctx, cl.ContentStore(), img.Target, platforms.Default())
		unpacked, uerr := client.NewImage(cl, img).IsUnpacked(ctx, "overlayfs")
		if err := errors.Join(err, uerr); ctx.Err() == nil && (err != nil || !ok || len(missing) > 0 || !unpacked) {
			h.t.Errorf("the reference on %s stands for %s: missing %v, unpacked %v, %v", h.name, img.Target.Digest, missing, unpacked, err)
			return targets
		}
	}
}

// TestContainerdComesLater: without containerd the daemon waits and says so, and
// goes on by itself, also when containerd restarts under it.
func TestContainerdComesLater(t *testing.T) {
	n := cluster(t, newest, 1, "")
	a := n.hosts[0]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	h := n.addHost(newest)
	h.startSeeder()
	a.inState(h, report.Waiting, "containerd")
	h.startContainerd()
	h.ready("hello")

	// k3s takes containerd with it whenever it restarts.
	h.containerd.stop(t, syscall.SIGKILL)
	eventually(t, 20*time.Second, "status says that containerd is away", func() error {
		var st report.Status
		if err := h.try(&st, "status"); err != nil || st.Containerd.OK {
			return fmt.Errorf("%+v %w", st.Containerd, err)
		}
		return nil
	})
	h.startContainerd()
	h.ctr("images", "rm", full)
	eventually(t, 30*time.Second, "the image is back", func() error {
		if !slices.Contains(h.names(), full) {
			return errors.New(strings.Join(h.names(), " "))
		}
		return nil
	})
	h.ready("hello")
}
