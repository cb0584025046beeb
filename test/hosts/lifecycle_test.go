package hosts

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
	"seeder/store/storetest"
	"seeder/test/harness"
)

// leasesOn are seeder's leases in the host's containerd.
func leasesOn(h *harness.Host) []string {
	h.T.Helper()
	list, err := h.Client().LeasesService().List(h.T.Context())
	if err != nil {
		h.T.Fatal(err)
	}
	var out []string
	for _, l := range list {
		if strings.HasPrefix(l.ID, "seeder-") {
			out = append(out, l.ID)
		}
	}
	slices.Sort(out)
	return out
}

// leasedForWork are seeder's leases that protect what is being worked on, and how many
// there are besides, each for an earlier version.
func leasedForWork(h *harness.Host) (work []string, previous int) {
	h.T.Helper()
	for _, lease := range leasesOn(h) {
		if strings.HasPrefix(lease, "seeder-previous-") {
			previous++
		} else {
			work = append(work, lease)
		}
	}
	return work, previous
}

// wantLeases waits until exactly these targets are kept as previous ones, and no
// other lease is there.
func wantLeases(h *harness.Host, kept ...digest.Digest) {
	h.T.Helper()
	want := []string{}
	for _, d := range kept {
		want = append(want, "seeder-previous-"+d.Encoded())
	}
	slices.Sort(want)
	harness.Eventually(h.T, 60*time.Second, "the leases on "+h.Name, func() error {
		if got := leasesOn(h); !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// detached starts a container that runs until it is killed and returns its task.
func detached(h *harness.Host, name, ref string) client.Task {
	h.T.Helper()
	h.Ctr("run", "-d", ref, name, "/bin/busybox", "sleep", "3600")
	c, err := h.Client().LoadContainer(h.T.Context(), name)
	if err != nil {
		h.T.Fatal(err)
	}
	task, err := c.Task(h.T.Context(), nil)
	if err != nil {
		h.T.Fatal(err)
	}
	return task
}

// end kills what detached has started, and removes the container once it is dead.
func end(h *harness.Host, task client.Task, name string) {
	h.T.Helper()
	ended, err := task.Wait(h.T.Context())
	if err == nil {
		err = task.Kill(h.T.Context(), syscall.SIGKILL)
	}
	if err != nil {
		h.T.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		h.T.Fatalf("container %s does not end", name)
	}
	if _, err := task.Delete(h.T.Context()); err != nil {
		h.T.Fatal(err)
	}
	h.Ctr("containers", "rm", name)
}

// TestVersions: a new build moves every host in one step and leaves containers
// alone; the build before is kept, can be gone back to without a transfer, also
// where the kubelet has removed its names, and is released in its turn.
func TestVersions(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b := n.Hosts[0], n.Hosts[1]
	build := func(says string) digest.Digest {
		t.Helper()
		a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Payload: 1 << 20, Random: 1 << 20, Seed: uint64(len(says))})
		a.Run("announce", harness.ShortName)
		for _, h := range n.Hosts {
			becomes(h, says)
		}
		return a.Target(harness.FullName)
	}
	one := build("one")
	task := detached(b, "old", harness.FullName)
	two := build("three") // names differ in length: so does the payload
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container of the old build is %v, %v", st.Status, err)
	}
	for _, h := range n.Hosts {
		wantLeases(h, one)
	}
	// What the kubelet does with an image that no pod uses.
	end(b, task, "old")
	for _, h := range n.Hosts {
		for _, name := range names(h) {
			if h.Target(name) == one {
				h.Ctr("images", "rm", "--sync", name)
			}
		}
		collect(h)
	}

	received := b.Metric(fromPeers)
	if out := a.Run("announce", "--rollback", harness.ShortName); !strings.Contains(out, one.String()) {
		t.Errorf("the rollback announced: %s", out)
	}
	for _, h := range n.Hosts {
		becomes(h, "one")
		wantLeases(h, two)
	}
	if got := b.Metric(fromPeers); got != received {
		t.Errorf("the rollback moved %v bytes to %s", got-received, b.Name)
	}
	// Forward again, by digest, from another host.
	b.Run("announce", harness.ShortName+"@"+two.String())
	for _, h := range n.Hosts {
		becomes(h, "three")
		wantLeases(h, one)
	}
	four := build("eleven")
	for _, h := range n.Hosts {
		wantLeases(h, two) // and one no more
	}
	err := a.Try(nil, "announce", harness.ShortName+"@"+digest.FromString("never").String())
	if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "this host has no image "+digest.FromString("never").String()) ||
		!strings.Contains(err.Error(), "earlier versions of k3s-dashboard:latest here: "+two.String()) {
		t.Errorf("a digest that nobody has: %v", err)
	}
	err = a.Try(nil, "announce", "--rollback", "other:v1")
	if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "it is not announced") {
		t.Errorf("rollback of what is not announced: %v", err)
	}
	// A repository's digest alone moves its tag latest.
	a.Run("announce", "k3s-dashboard@"+two.String())
	for _, h := range n.Hosts {
		becomes(h, "three")
		wantLeases(h, four)
	}
	a.Run("withdraw", harness.ShortName)
	for _, h := range n.Hosts {
		wantLeases(h)
	}
}

// TestTwoAnnouncersAtOnce: two hosts announce builds of their own under one
// reference at the same moment; one wins everywhere, and `images` says who.
func TestTwoAnnouncersAtOnce(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 4, "")
	says := map[string]string{}
	var wg sync.WaitGroup
	for i, h := range n.Hosts[:2] {
		says[h.Name] = "from " + h.Name
		h.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says[h.Name], Payload: 1 << 20, Seed: uint64(i + 1)})
	}
	for _, h := range n.Hosts[:2] {
		wg.Go(func() {
			if err := h.Try(nil, "announce", harness.ShortName, "--detach"); err != nil {
				t.Logf("announce on %s: %v", h.Name, err) // the one that heard of the other first
			}
		})
	}
	wg.Wait()
	var row report.ImageState
	harness.Eventually(t, 60*time.Second, "all agree", func() error {
		for i, h := range n.Hosts {
			got, err := h.Image(harness.ShortName)
			if err != nil {
				return err
			}
			if i == 0 {
				row = got
			}
			if got.Digest != row.Digest || got.Version != row.Version || got.AnnouncedBy != row.AnnouncedBy || got.Ready != 4 {
				return fmt.Errorf("%s says %s %d by %s, %d ready; %s says %s %d by %s",
					h.Name, got.Digest, got.Version, got.AnnouncedBy, got.Ready, n.Hosts[0].Name, row.Digest, row.Version, row.AnnouncedBy)
			}
		}
		return nil
	})
	t.Logf("version %d by %s won", row.Version, row.AnnouncedBy)
	for _, h := range n.Hosts {
		h.Ready(says[row.AnnouncedBy])
		if got := h.Target(harness.FullName); got.String() != row.Digest {
			t.Errorf("%s has %s, want %s", h.Name, got, row.Digest)
		}
	}
	// A third one, later, wins over both.
	third := n.Hosts[2]
	third.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "third", Payload: 1 << 20, Seed: 3})
	third.Run("announce", harness.ShortName)
	for _, h := range n.Hosts {
		becomes(h, "third")
	}
}

// TestMayNotAnnounce: a host that is not in announcers is told so before anything is
// moved or imported there.
func TestMayNotAnnounce(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	var status report.Status
	if err := a.Try(&status, "status"); err != nil {
		t.Fatal(err)
	}
	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGTERM)
		h.StartSeeder("SEEDER_ANNOUNCERS=" + status.ID)
	}
	a.AwaitMembers(2)
	for i, says := range []string{"one", "three"} {
		a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Payload: 1 << 20, Seed: uint64(i)})
		a.Run("announce", harness.ShortName)
		becomes(b, says)
	}
	other := harness.NewImage(t, harness.ImageSpec{Ref: "other:v1", Says: "other", Payload: 1 << 20, Seed: 9})
	before := names(b)
	for _, args := range [][]string{{"--rollback", harness.ShortName}, {harness.ShortName}, {"--from", other.DockerArchive(t, n.Dir)}} {
		err := b.Try(nil, append([]string{"announce"}, args...)...)
		if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "is not in `announcers`; announce on a host that is") {
			t.Errorf("announce %v: %v", args, err)
		}
	}
	if got := names(b); !slices.Equal(got, before) {
		t.Errorf("names were %v and are %v", before, got)
	}
	if got := b.RunContainer(harness.FullName); got != "three" {
		t.Errorf("a container prints %q", got)
	}
	a.InState(b, report.Ready, "")
}

// TestAuto: what is imported on any host reaches all without a command, a new build
// of it too; what came from a registry does not; and hosts that all follow what the
// others have announced come to rest.
func TestAuto(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for range 3 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_IMAGES_AUTO=local")
	}
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	a.AwaitMembers(3)
	criPull(c, harness.NewImage(t, harness.ImageSpec{Ref: pulledRef, Says: "pulled", Payload: 1 << 20, Seed: 7}))
	begun := time.Now()
	b.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "one", Payload: 1 << 20, Seed: 1})
	for _, h := range n.Hosts {
		becomes(h, "one")
	}
	t.Logf("an import reached all by itself in %v", time.Since(begun).Round(time.Millisecond))
	builds := uint64(1)
	for i, h := range n.Hosts { // anyone who has it may build it
		says := fmt.Sprint("build ", i)
		before, err := a.Image(harness.ShortName)
		if err != nil {
			t.Fatal(err)
		}
		h.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Payload: 1 << 20, Seed: uint64(10 + i)})
		begun := time.Now()
		builds++
		harness.Eventually(t, 30*time.Second, "the new build is announced", func() error {
			if row, err := a.Image(harness.ShortName); err != nil || row.Digest == before.Digest {
				return fmt.Errorf("%s %w", row.Digest, err)
			}
			return nil
		})
		t.Logf("a new build on %s was announced after %v", h.Name, time.Since(begun).Round(time.Millisecond))
		for _, o := range n.Hosts {
			becomes(o, says)
		}
	}
	// Another image goes round meanwhile; nobody has announced the first again.
	c.ImportImage(harness.ImageSpec{Ref: "other:v1", Says: "other", Payload: 1 << 20, Seed: 20})
	harness.Eventually(t, 30*time.Second, "the other image is on all hosts", func() error {
		row, err := a.Image("other:v1")
		if err == nil && row.Ready != 3 {
			err = fmt.Errorf("%d ready", row.Ready)
		}
		return err
	})
	row, err := a.Image(harness.ShortName)
	if err != nil || row.Version != builds || row.Ready != 3 {
		t.Errorf("version %d, %d ready, %v; want one announcement for each of %d builds", row.Version, row.Ready, err, builds)
	}
	if err := a.Try(nil, "images", pulledRef); harness.ExitCode(err) != 1 {
		t.Errorf("what came from a registry was announced: %v", err)
	}
	// Withdrawn is withdrawn, though the image is still there.
	a.Run("withdraw", "other:v1")
	c.Seeder.Stop(t, syscall.SIGTERM)
	c.StartSeeder("SEEDER_IMAGES_AUTO=local")
	c.AwaitMembers(3)
	c.ImportImage(harness.ImageSpec{Ref: "third:v1", Says: "third", Payload: 1 << 20, Seed: 30})
	harness.Eventually(t, 30*time.Second, "the third image is on all hosts", func() error {
		row, err := a.Image("third:v1")
		if err == nil && row.Ready != 3 {
			err = fmt.Errorf("%d ready", row.Ready)
		}
		return err
	})
	if row, err := a.Image("other:v1"); err != nil || row.State != "withdrawn" {
		t.Errorf("what was withdrawn is %s, %v", row.State, err)
	}
}

// TestPurgeInUse: a purge leaves the image where a container uses it, says so, and
// goes on by itself; a host that is away purges when it is back; --force asks nobody.
func TestPurgeInUse(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	task := detached(b, "used", harness.FullName)
	c.Seeder.Stop(t, syscall.SIGTERM)
	out := a.Run("withdraw", "--purge", harness.ShortName)
	if !strings.Contains(out, "removed on 1 of 2 nodes") || !strings.Contains(out, b.Name+": used by container used; it is removed once it is not, or at once with --force") {
		t.Errorf("withdraw --purge printed:\n%s", out)
	}
	if b.Target(harness.FullName) == "" || a.Target(harness.FullName) != "" {
		t.Errorf("on %s it is %q, on %s %q", b.Name, b.Target(harness.FullName), a.Name, a.Target(harness.FullName))
	}
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container is %v, %v", st.Status, err)
	}
	c.StartSeeder()
	purged(c, harness.FullName)
	end(b, task, "used")
	purged(b, harness.FullName)

	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	task = detached(b, "used", harness.FullName)
	if out := a.Run("withdraw", "--purge", "--force", harness.ShortName); !strings.Contains(out, "removed on 3 of 3 nodes") {
		t.Errorf("withdraw --purge --force printed:\n%s", out)
	}
	purged(b, harness.FullName)
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container is %v, %v", st.Status, err)
	}
}

// purged waits until the host has no name of the image.
func purged(h *harness.Host, ref string) {
	h.T.Helper()
	harness.Eventually(h.T, 60*time.Second, ref+" is purged on "+h.Name, func() error {
		if slices.Contains(names(h), ref) {
			return errors.New("it is there")
		}
		return nil
	})
}

// TestForWhom: label selectors of an announcement and images.accept of a host say
// who holds an image; the matrix says by which rule the others do not.
func TestForWhom(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	for _, env := range []string{"SEEDER_LABELS=zone=a,role=web", "SEEDER_LABELS=zone=a,role=gpu", "SEEDER_LABELS=zone=b", "SEEDER_IMAGES_ACCEPT=other/*"} {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder(env)
	}
	a, gpu, zoneB, picky := n.Hosts[0], n.Hosts[1], n.Hosts[2], n.Hosts[3]
	a.AwaitMembers(4)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName, "--on", "zone=a", "--on", "role!=gpu")
	a.Ready("hello")
	a.InState(gpu, report.Excluded, "announced with --on role!=gpu, this node has role=gpu")
	a.InState(zoneB, report.Excluded, "announced with --on zone=a, this node has zone=b")
	a.InState(picky, report.Excluded, "this node has no label zone")
	for _, h := range []*harness.Host{gpu, zoneB, picky} {
		if got := h.Target(harness.FullName); got != "" {
			t.Errorf("%s has it", h.Name)
		}
	}
	// A new build goes to the same nodes.
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "again", Payload: 1 << 20, Seed: 2})
	becomes(a, "again")
	a.InState(zoneB, report.Excluded, "announced with --on zone=a")
	// Announced for everybody.
	a.Run("announce", harness.ShortName)
	becomes(gpu, "again")
	becomes(zoneB, "again")
	a.InState(picky, report.Excluded, `no pattern of images.accept ["other/*"] on this host matches`)
	err := a.Try(nil, "announce", harness.ShortName, "--on", "zone=c")
	if harness.ExitCode(err) != 2 || !strings.Contains(err.Error(), "--on zone=c matches no alive node; the nodes have role=gpu, role=web, zone=a, zone=b") {
		t.Errorf("a selector with no match: %v", err)
	}
	// Going back is for the same nodes.
	a.Run("announce", harness.ShortName, "--on", "zone=a")
	a.Run("announce", "--rollback", harness.ShortName)
	becomes(a, "hello")
	a.InState(zoneB, report.Excluded, "announced with --on zone=a")
	if got := zoneB.RunContainer(harness.FullName); got != "again" {
		t.Errorf("on a host that is not meant any more a container prints %q", got)
	}
	if img, err := zoneB.ImageStatus(harness.FullName); err != nil || img.GetPinned() {
		t.Errorf("what is not for this host any more is pinned there: %v, %v", img, err)
	}
	wantLeases(zoneB)
	a.Run("announce", "--rollback", harness.ShortName)
	becomes(a, "again")
	a.Run("announce", harness.ShortName, "--on", "zone=c", "--yes")
	late := n.AddHost(harness.Newest)
	late.StartContainerd()
	late.StartSeeder("SEEDER_LABELS=zone=c")
	late.Ready("again")
}

// TestPlatforms: of an image for two platforms each host holds what its own needs;
// a host whose platform it lacks is excluded, and nobody waits for it.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	arm := n.AddHost(harness.Newest)
	arm.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded", "SEEDER_CONTAINERD_PLATFORM=linux/arm64")
	unpacks := n.AddHost(harness.Newest)
	unpacks.StartContainerd()
	unpacks.StartSeeder("SEEDER_CONTAINERD_PLATFORM=linux/arm64")
	a.AwaitMembers(4)
	both := storetest.NewIndex(t, harness.FullName, 1, "linux/amd64", "linux/arm64")
	a.Run("announce", "--from", harness.WriteFile(t, n.Dir, "both-*.tar", both.OCIArchive(t)))
	b.InState(b, report.Ready, "")
	arm.InState(arm, report.Ready, "")
	arm.InState(unpacks, report.Ready, "")
	if got := b.Target(harness.FullName); got != both.Target.Digest {
		t.Errorf("%s has %s, want the index %s", b.Name, got, both.Target.Digest)
	}
	for i, m := range both.Manifests {
		for _, layer := range m.Layers {
			if _, err := b.Client().ContentStore().Info(t.Context(), layer.Digest); (err == nil) != (i == 0) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, b.Name, err)
			}
			_, err := arm.In(t.Context(), "stat", "/var/lib/seeder/embedded/content/blobs/sha256/"+layer.Digest.Encoded()).CombinedOutput()
			if (err == nil) != (i == 1) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, arm.Name, err)
			}
			if _, err := unpacks.Client().ContentStore().Info(t.Context(), layer.Digest); (err == nil) != (i == 1) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, unpacks.Name, err)
			}
		}
	}
	// A host that holds its own part of it announces it once more: the others keep theirs.
	if out := b.Run("announce", harness.FullName); !strings.Contains(out, "is ready on 4 of 4 nodes") || !strings.Contains(out, "version 1") {
		t.Errorf("announced by a host that holds only its own part:\n%s", out)
	}
	// a announces what it cannot run itself, from an archive and once more from
	// containerd; those that can fetch it from there.
	const only = "docker.io/library/arm-only:v1"
	one := storetest.NewIndex(t, only, 9, "linux/arm64")
	for _, args := range [][]string{{"--from", harness.WriteFile(t, n.Dir, "arm-*.tar", one.OCIArchive(t))}, {only}} {
		if out := a.Run(append([]string{"announce"}, args...)...); !strings.Contains(out, "is ready on 2 of 2 nodes") {
			t.Errorf("announce of an image for arm64 printed:\n%s", out)
		}
	}
	harness.Eventually(t, 30*time.Second, "the others are excluded", func() error {
		row, err := arm.Image(only)
		if err != nil {
			return err
		}
		for _, c := range row.Nodes {
			if c.Name != arm.Name && c.Name != unpacks.Name && (c.State != report.Excluded || c.Reason != "the image is for linux/arm64, this host runs linux/amd64") {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	})
}

// TestPins: a pin that k3s clears at its start is put back; where images are not
// pinned and the kubelet removes one, it is not fetched again at once.
func TestPins(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	loose := n.AddHost(harness.Newest)
	loose.StartContainerd()
	loose.StartSeeder("SEEDER_IMAGES_PIN=false")
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(3)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	loose.Ready("hello")
	b.Ctr("images", "label", harness.FullName, "io.cri-containerd.pinned=")
	harness.Eventually(t, 30*time.Second, "the pin is back", func() error {
		img, err := b.ImageStatus(harness.FullName)
		if err == nil && !img.GetPinned() {
			err = errors.New("CRI does not show the image as pinned")
		}
		return err
	})
	if img, err := loose.ImageStatus(harness.FullName); err != nil || img.GetPinned() {
		t.Errorf("pinned in spite of images.pin: false: %v, %v", img, err)
	}
	loose.Ctr(append([]string{"images", "rm", "--sync"}, names(loose)...)...)
	a.InState(loose, report.Waiting, "images.pin is off: the kubelet may need the room")
	if names := names(loose); len(names) > 0 {
		t.Errorf("it is back at once: %v", names)
	}
	// Nobody waits for it to give in: an announcement of a new build comes at once.
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "again", Payload: 1 << 20, Seed: 2})
	becomes(loose, "again")
}

// TestNoRoom: a host without the room says how much is missing, fetches nothing, and
// goes on by itself when there is room.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 1, "")
	a := n.Hosts[0]
	h := n.AddHost(harness.Newest)
	disks(h, 256, 64)
	h.StartContainerd()
	h.StartSeeder()
	h.Sh("busybox dd if=/dev/zero of=" + containerdRoot + "/ballast bs=1M count=40 2>/dev/null")
	a.AwaitMembers(2)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 16 << 20, Seed: 1})
	a.Run("announce", harness.ShortName, "--detach")
	a.InState(h, report.Waiting, "images.min_free")
	cells, err := a.States(harness.ShortName)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", h.Name, cells[h.Name].Reason)
	if want := "the disk of " + containerdRoot; !strings.HasPrefix(cells[h.Name].Reason, want) || !strings.Contains(cells[h.Name].Reason, " more: ") {
		t.Errorf("%q, want %q … more: …", cells[h.Name].Reason, want)
	}
	if got := h.Metric(`seeder_chunk_bytes_total{source="peer"}`); got != 0 {
		t.Errorf("%v bytes were fetched all the same", got)
	}
	h.Sh("rm " + containerdRoot + "/ballast")
	h.Ready("hello")
	wantLeases(h)
}
