package hosts

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
	"seeder/test/harness"
)

// TestLateJoiner: a host that joins later gets what was announced before.
func TestLateJoiner(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	n.Hosts[0].Run("announce", harness.ShortName)
	late := n.AddHost(harness.Newest)
	late.StartContainerd()
	late.StartSeeder()
	late.Ready("hello")
}

// TestHostDownDuringAnnounce: a host that was off or cut off does not hold up
// the others, is shown as such, and gets the image when it is back.
func TestHostDownDuringAnnounce(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 4, "")
	a, off, cut := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	off.Seeder.Stop(t, syscall.SIGTERM)
	cut.Unplug()
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	start := time.Now()
	a.Run("announce", harness.ShortName)
	t.Logf("announced with a host off and one cut off in %v", time.Since(start).Round(time.Millisecond))
	n.Hosts[3].Ready("hello")
	if cells, err := a.States(harness.ShortName); err != nil || cells[cut.Name].State == report.Ready {
		t.Errorf("the matrix shows a host that is cut off as %+v, %v", cells[cut.Name], err)
	}

	off.StartSeeder()
	off.Ready("hello")
	cut.Replug()
	start = time.Now()
	cut.Ready("hello")
	t.Logf("the host that was cut off was ready %v after", time.Since(start).Round(time.Millisecond))
}

// TestRemovedImageComesBack: ctr images rm is fixed without a command, and
// without the network where the bytes are still here.
func TestRemovedImageComesBack(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	n.Hosts[0].Run("announce", harness.ShortName)
	for _, h := range n.Hosts { // the announcer too
		h.Ready("hello")
		h.Ctr(append([]string{"images", "rm", "--sync"}, names(h)...)...)
		harness.Eventually(t, 30*time.Second, "the image is back on "+h.Name, func() error {
			img, err := h.ImageStatus(harness.FullName)
			if err == nil && img == nil {
				err = errors.New("CRI does not know it")
			}
			return err
		})
		h.Ready("hello")
		complete(h)
	}
}

// names are those of the test image in containerd, the one by config digest too.
func names(h *harness.Host) []string {
	h.T.Helper()
	var out []string
	for name := range strings.Lines(h.Ctr("images", "ls", "-q")) {
		out = append(out, strings.TrimSpace(name))
	}
	return out
}

// TestRestart: the catalog survives a restart of one node and of all at once, by
// SIGTERM and by kill -9.
func TestRestart(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	row, err := a.Image(harness.ShortName)
	if err != nil {
		t.Fatal(err)
	}
	b.Seeder.Stop(t, syscall.SIGTERM)
	a.AwaitMembers(2)
	b.StartSeeder()
	a.AwaitMembers(3)
	b.Ready("hello")

	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGKILL)
	}
	c.StartSeeder() // alone it still knows
	alone, err := c.Image(harness.ShortName)
	if err != nil || alone.Digest != row.Digest || alone.Version != row.Version {
		t.Errorf("after a restart %s alone knows %+v, %v; want %s, version %d", c.Name, alone, err, row.Digest, row.Version)
	}
	b.Ctr(append([]string{"images", "rm", "--sync"}, names(b)...)...)
	a.StartSeeder()
	b.StartSeeder()
	for _, h := range n.Hosts {
		h.AwaitMembers(3)
		h.Ready("hello")
	}
}

// TestNewBuildMovesEveryHost: announcing a new build under the same reference
// moves all hosts; on each the reference stands for the old build or the new one,
// complete, at every moment.
func TestNewBuildMovesEveryHost(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "200mbit")
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "one", Payload: 8 << 20, Random: 4 << 20, Seed: 1})
	n.Hosts[0].Run("announce", harness.ShortName)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	seen := make([][]digest.Digest, len(n.Hosts))
	for i, h := range n.Hosts[1:] {
		cl := h.Client()
		wg.Go(func() { seen[i+1] = watch(h, ctx, cl) })
	}
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "two", Payload: 8 << 20, Random: 4 << 20, Seed: 2})
	n.Hosts[0].Run("announce", harness.ShortName)
	for _, h := range n.Hosts {
		h.Ready("two")
	}
	stop()
	wg.Wait()
	for i, h := range n.Hosts[1:] {
		if len(seen[i+1]) != 2 {
			t.Errorf("on %s the reference stood for %v, want the old build and then the new one", h.Name, seen[i+1])
		}
	}
}

// TestImportByHand: a new build that somebody imports is not put back to the
// announced one: on the host that announced it is announced again by itself, on
// another host it waits for its announcement.
func TestImportByHand(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b := n.Hosts[0], n.Hosts[1]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "one", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "two", Payload: 1 << 20, Seed: 2})
	for _, h := range n.Hosts {
		becomes(h, "two")
	}
	b.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "three", Payload: 1 << 20, Seed: 3})
	b.InState(b, report.Excluded, "was later put under that name")
	if got := b.RunContainer(harness.FullName); got != "three" {
		t.Errorf("after the import by hand a container prints %q", got)
	}
	b.Run("announce", harness.ShortName)
	for _, h := range n.Hosts {
		becomes(h, "three")
		complete(h)
	}
}

// becomes waits until a container from the image prints says.
func becomes(h *harness.Host, says string) {
	h.T.Helper()
	harness.Eventually(h.T, 30*time.Second, h.Name+" runs "+says, func() error {
		cmd := h.CtrCmd("run", "--rm", harness.FullName, "c"+strconv.FormatInt(time.Now().UnixNano(), 36))
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != says {
			return fmt.Errorf("prints %q, %w", out, errors.Join(err))
		}
		return nil
	})
	h.Ready(says)
}

// watch looks at the reference all the time, fails the test where it is not there
// or stands for something incomplete, and returns what it stood for.
func watch(h *harness.Host, ctx context.Context, cl *client.Client) (targets []digest.Digest) {
	for looks := 0; ; looks++ {
		img, err := cl.ImageService().Get(ctx, harness.FullName)
		if ctx.Err() != nil {
			h.T.Logf("looked %d times at the reference on %s", looks, h.Name)
			return targets
		}
		if err != nil {
			h.T.Errorf("the reference is away on %s: %v", h.Name, err)
			return targets
		}
		if len(targets) == 0 || targets[len(targets)-1] != img.Target.Digest {
			targets = append(targets, img.Target.Digest)
		}
		ok, _, _, missing, err := images.Check(ctx, cl.ContentStore(), img.Target, platforms.Default())
		unpacked, uerr := client.NewImage(cl, img).IsUnpacked(ctx, "overlayfs")
		if err := errors.Join(err, uerr); ctx.Err() == nil && (err != nil || !ok || len(missing) > 0 || !unpacked) {
			h.T.Errorf("the reference on %s stands for %s: missing %v, unpacked %v, %v", h.Name, img.Target.Digest, missing, unpacked, err)
			return targets
		}
	}
}

// TestContainerdComesLater: without containerd the daemon waits and says so, and
// goes on by itself, also when containerd restarts under it.
func TestContainerdComesLater(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 1, "")
	a := n.Hosts[0]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	h := n.AddHost(harness.Newest)
	h.StartSeeder()
	a.InState(h, report.Waiting, "containerd")
	h.StartContainerd()
	h.Ready("hello")

	// k3s takes containerd with it whenever it restarts.
	h.Containerd.Stop(t, syscall.SIGKILL)
	harness.Eventually(t, 20*time.Second, "status says that containerd is away", func() error {
		var st report.Status
		if err := h.Try(&st, "status"); err != nil || st.Containerd.OK {
			return fmt.Errorf("%+v %w", st.Containerd, err)
		}
		return nil
	})
	h.StartContainerd()
	h.Ctr("images", "rm", harness.FullName)
	harness.Eventually(t, 30*time.Second, "the image is back", func() error {
		if !slices.Contains(names(h), harness.FullName) {
			return errors.New(strings.Join(names(h), " "))
		}
		return nil
	})
	h.Ready("hello")
}
