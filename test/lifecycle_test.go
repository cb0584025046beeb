package test

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
)

// target is what a reference stands for in the host's containerd; "" for nothing.
func (h *host) target(ref string) digest.Digest {
	h.t.Helper()
	img, err := h.client().ImageService().Get(h.t.Context(), ref)
	if err != nil {
		return ""
	}
	return img.Target.Digest
}

// leases are seeder's leases in the host's containerd.
func (h *host) leases() []string {
	h.t.Helper()
	list, err := h.client().LeasesService().List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
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
func (h *host) leasedForWork() (work []string, previous int) {
	h.t.Helper()
	for _, lease := range h.leases() {
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
func (h *host) wantLeases(kept ...digest.Digest) {
	h.t.Helper()
	want := []string{}
	for _, d := range kept {
		want = append(want, "seeder-previous-"+d.Encoded())
	}
	slices.Sort(want)
	eventually(h.t, 60*time.Second, "the leases on "+h.name, func() error {
		if got := h.leases(); !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// detached starts a container that runs until it is killed and returns its task.
func (h *host) detached(name, ref string) client.Task {
	h.t.Helper()
	h.ctr("run", "-d", ref, name, "/bin/busybox", "sleep", "3600")
	c, err := h.client().LoadContainer(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	task, err := c.Task(h.t.Context(), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return task
}

// end kills what detached has started, and removes the container once it is dead.
func (h *host) end(task client.Task, name string) {
	h.t.Helper()
	ended, err := task.Wait(h.t.Context())
	if err == nil {
		err = task.Kill(h.t.Context(), syscall.SIGKILL)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		h.t.Fatalf("container %s does not end", name)
	}
	if _, err := task.Delete(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.ctr("containers", "rm", name)
}

// TestVersions: a new build moves every host in one step and leaves containers
// alone; the build before is kept, can be gone back to without a transfer, also
// where the kubelet has removed its names, and is let go of in its turn.
func TestVersions(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a, b := n.hosts[0], n.hosts[1]
	build := func(says string) digest.Digest {
		t.Helper()
		a.importImage(imageSpec{ref: short, says: says, payload: 1 << 20, random: 1 << 20, seed: uint64(len(says))})
		a.run("announce", short)
		for _, h := range n.hosts {
			h.becomes(says)
		}
		return a.target(full)
	}
	one := build("one")
	task := b.detached("old", full)
	two := build("three") // names differ in length: so does the payload
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container of the old build is %v, %v", st.Status, err)
	}
	for _, h := range n.hosts {
		h.wantLeases(one)
	}
	// What the kubelet does with an image that no pod uses.
	b.end(task, "old")
	for _, h := range n.hosts {
		for _, name := range h.names() {
			if h.target(name) == one {
				h.ctr("images", "rm", "--sync", name)
			}
		}
		h.collect()
	}

	received := b.metric(fromPeers)
	if out := a.run("announce", "--rollback", short); !strings.Contains(out, one.String()) {
		t.Errorf("the rollback announced: %s", out)
	}
	for _, h := range n.hosts {
		h.becomes("one")
		h.wantLeases(two)
	}
	if got := b.metric(fromPeers); got != received {
		t.Errorf("the rollback moved %v bytes to %s", got-received, b.name)
	}
	// Forward again, by digest, from another host.
	b.run("announce", short+"@"+two.String())
	for _, h := range n.hosts {
		h.becomes("three")
		h.wantLeases(one)
	}
	four := build("eleven")
	for _, h := range n.hosts {
		h.wantLeases(two) // and one no more
	}
	err := a.try(nil, "announce", short+"@"+digest.FromString("never").String())
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "this host has no image "+digest.FromString("never").String()) ||
		!strings.Contains(err.Error(), "earlier versions of k3s-dashboard:latest here: "+two.String()) {
		t.Errorf("a digest that nobody has: %v", err)
	}
	err = a.try(nil, "announce", "--rollback", "other:v1")
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "it is not announced") {
		t.Errorf("rollback of what is not announced: %v", err)
	}
	// A repository's digest alone moves its tag latest.
	a.run("announce", "k3s-dashboard@"+two.String())
	for _, h := range n.hosts {
		h.becomes("three")
		h.wantLeases(four)
	}
	a.run("withdraw", short)
	for _, h := range n.hosts {
		h.wantLeases()
	}
}

// TestTwoAnnouncersAtOnce: two hosts announce builds of their own under one
// reference at the same moment; one wins everywhere, and `images` says who.
func TestTwoAnnouncersAtOnce(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 4, "")
	says := map[string]string{}
	var wg sync.WaitGroup
	for i, h := range n.hosts[:2] {
		says[h.name] = "from " + h.name
		h.importImage(imageSpec{ref: short, says: says[h.name], payload: 1 << 20, seed: uint64(i + 1)})
	}
	for _, h := range n.hosts[:2] {
		wg.Go(func() {
			if err := h.try(nil, "announce", short, "--detach"); err != nil {
				t.Logf("announce on %s: %v", h.name, err) // the one that heard of the other first
			}
		})
	}
	wg.Wait()
	var row report.ImageState
	eventually(t, 60*time.Second, "all agree", func() error {
		for i, h := range n.hosts {
			got, err := h.image(short)
			if err != nil {
				return err
			}
			if i == 0 {
				row = got
			}
			if got.Digest != row.Digest || got.Version != row.Version || got.AnnouncedBy != row.AnnouncedBy || got.Ready != 4 {
				return fmt.Errorf("%s says %s %d by %s, %d ready; %s says %s %d by %s",
					h.name, got.Digest, got.Version, got.AnnouncedBy, got.Ready, n.hosts[0].name, row.Digest, row.Version, row.AnnouncedBy)
			}
		}
		return nil
	})
	t.Logf("version %d by %s won", row.Version, row.AnnouncedBy)
	for _, h := range n.hosts {
		h.ready(says[row.AnnouncedBy])
		if got := h.target(full); got.String() != row.Digest {
			t.Errorf("%s has %s, want %s", h.name, got, row.Digest)
		}
	}
	// A third one, later, wins over both.
	third := n.hosts[2]
	third.importImage(imageSpec{ref: short, says: "third", payload: 1 << 20, seed: 3})
	third.run("announce", short)
	for _, h := range n.hosts {
		h.becomes("third")
	}
}

// TestMayNotAnnounce: a host that is not in announcers is told so before anything is
// moved or imported there.
func TestMayNotAnnounce(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	var status report.Status
	if err := a.try(&status, "status"); err != nil {
		t.Fatal(err)
	}
	for _, h := range n.hosts {
		h.seeder.stop(t, syscall.SIGTERM)
		h.startSeeder("SEEDER_ANNOUNCERS=" + status.ID)
	}
	a.awaitMembers(2)
	for i, says := range []string{"one", "three"} {
		a.importImage(imageSpec{ref: short, says: says, payload: 1 << 20, seed: uint64(i)})
		a.run("announce", short)
		b.becomes(says)
	}
	other := newImage(t, imageSpec{ref: "other:v1", says: "other", payload: 1 << 20, seed: 9})
	before := b.names()
	for _, args := range [][]string{{"--rollback", short}, {short}, {"--from", other.dockerArchive(t, n.dir)}} {
		err := b.try(nil, append([]string{"announce"}, args...)...)
		if exitCode(err) != 1 || !strings.Contains(err.Error(), "is not in `announcers`; announce on a host that is") {
			t.Errorf("announce %v: %v", args, err)
		}
	}
	if got := b.names(); !slices.Equal(got, before) {
		t.Errorf("names were %v and are %v", before, got)
	}
	if got := b.runContainer(full); got != "three" {
		t.Errorf("a container prints %q", got)
	}
	a.inState(b, report.Ready, "")
}

// TestAuto: what is imported on any host reaches all without a command, a new build
// of it too; what came from a registry does not; and hosts that all follow what the
// others have announced come to rest.
func TestAuto(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	for range 3 {
		h := n.addHost(newest)
		h.startContainerd()
		h.startSeeder("SEEDER_IMAGES_AUTO=local")
	}
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	a.awaitMembers(3)
	c.criPull(newImage(t, imageSpec{ref: pulledRef, says: "pulled", payload: 1 << 20, seed: 7}))
	begun := time.Now()
	b.importImage(imageSpec{ref: short, says: "one", payload: 1 << 20, seed: 1})
	for _, h := range n.hosts {
		h.becomes("one")
	}
	t.Logf("an import reached all by itself in %v", time.Since(begun).Round(time.Millisecond))
	builds := uint64(1)
	for i, h := range n.hosts { // whoever has it may build it
		says := fmt.Sprint("build ", i)
		before, err := a.image(short)
		if err != nil {
			t.Fatal(err)
		}
		h.importImage(imageSpec{ref: short, says: says, payload: 1 << 20, seed: uint64(10 + i)})
		begun := time.Now()
		builds++
		eventually(t, 30*time.Second, "the new build is announced", func() error {
			if row, err := a.image(short); err != nil || row.Digest == before.Digest {
				return fmt.Errorf("%s %w", row.Digest, err)
			}
			return nil
		})
		t.Logf("a new build on %s was announced after %v", h.name, time.Since(begun).Round(time.Millisecond))
		for _, o := range n.hosts {
			o.becomes(says)
		}
	}
	// Another image goes round meanwhile; nobody has announced the first again.
	c.importImage(imageSpec{ref: "other:v1", says: "other", payload: 1 << 20, seed: 20})
	eventually(t, 30*time.Second, "the other image is on all hosts", func() error {
		row, err := a.image("other:v1")
		if err == nil && row.Ready != 3 {
			err = fmt.Errorf("%d ready", row.Ready)
		}
		return err
	})
	row, err := a.image(short)
	if err != nil || row.Version != builds || row.Ready != 3 {
		t.Errorf("version %d, %d ready, %v; want one announcement for each of %d builds", row.Version, row.Ready, err, builds)
	}
	if err := a.try(nil, "images", pulledRef); exitCode(err) != 1 {
		t.Errorf("what came from a registry was announced: %v", err)
	}
	// Withdrawn is withdrawn, though the image is still there.
	a.run("withdraw", "other:v1")
	c.seeder.stop(t, syscall.SIGTERM)
	c.startSeeder("SEEDER_IMAGES_AUTO=local")
	c.awaitMembers(3)
	c.importImage(imageSpec{ref: "third:v1", says: "third", payload: 1 << 20, seed: 30})
	eventually(t, 30*time.Second, "the third image is on all hosts", func() error {
		row, err := a.image("third:v1")
		if err == nil && row.Ready != 3 {
			err = fmt.Errorf("%d ready", row.Ready)
		}
		return err
	})
	if row, err := a.image("other:v1"); err != nil || row.State != "withdrawn" {
		t.Errorf("what was withdrawn is %s, %v", row.State, err)
	}
}

// TestPurgeInUse: a purge leaves the image where a container uses it, says so, and
// goes on by itself; a host that is away purges when it is back; --force asks nobody.
func TestPurgeInUse(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a, b, c := n.hosts[0], n.hosts[1], n.hosts[2]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	task := b.detached("used", full)
	c.seeder.stop(t, syscall.SIGTERM)
	out := a.run("withdraw", "--purge", short)
	if !strings.Contains(out, "removed on 1 of 2 nodes") || !strings.Contains(out, b.name+": used by container used; it is removed once it is not, or at once with --force") {
		t.Errorf("withdraw --purge printed:\n%s", out)
	}
	if b.target(full) == "" || a.target(full) != "" {
		t.Errorf("on %s it is %q, on %s %q", b.name, b.target(full), a.name, a.target(full))
	}
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container is %v, %v", st.Status, err)
	}
	c.startSeeder()
	c.purged(full)
	b.end(task, "used")
	b.purged(full)

	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	b.ready("hello")
	task = b.detached("used", full)
	if out := a.run("withdraw", "--purge", "--force", short); !strings.Contains(out, "removed on 3 of 3 nodes") {
		t.Errorf("withdraw --purge --force printed:\n%s", out)
	}
	b.purged(full)
	if st, err := task.Status(t.Context()); err != nil || st.Status != client.Running {
		t.Errorf("the container is %v, %v", st.Status, err)
	}
}

// purged waits until the host has no name of the image.
func (h *host) purged(ref string) {
	h.t.Helper()
	eventually(h.t, 60*time.Second, ref+" is purged on "+h.name, func() error {
		if slices.Contains(h.names(), ref) {
			return errors.New("it is there")
		}
		return nil
	})
}

// TestForWhom: label selectors of an announcement and images.accept of a host say
// who holds an image; the matrix says by which rule the others do not.
func TestForWhom(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "")
	for _, env := range []string{"SEEDER_LABELS=zone=a,role=web", "SEEDER_LABELS=zone=a,role=gpu", "SEEDER_LABELS=zone=b", "SEEDER_IMAGES_ACCEPT=other/*"} {
		h := n.addHost(newest)
		h.startContainerd()
		h.startSeeder(env)
	}
	a, gpu, zoneB, picky := n.hosts[0], n.hosts[1], n.hosts[2], n.hosts[3]
	a.awaitMembers(4)
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short, "--on", "zone=a", "--on", "role!=gpu")
	a.ready("hello")
	a.inState(gpu, report.Excluded, "announced with --on role!=gpu, this node has role=gpu")
	a.inState(zoneB, report.Excluded, "announced with --on zone=a, this node has zone=b")
	a.inState(picky, report.Excluded, "this node has no label zone")
	for _, h := range []*host{gpu, zoneB, picky} {
		if got := h.target(full); got != "" {
			t.Errorf("%s has it", h.name)
		}
	}
	// A new build goes to the same nodes.
	a.importImage(imageSpec{ref: short, says: "again", payload: 1 << 20, seed: 2})
	a.becomes("again")
	a.inState(zoneB, report.Excluded, "announced with --on zone=a")
	// Announced for everybody.
	a.run("announce", short)
	gpu.becomes("again")
	zoneB.becomes("again")
	a.inState(picky, report.Excluded, `no pattern of images.accept ["other/*"] on this host matches`)
	err := a.try(nil, "announce", short, "--on", "zone=c")
	if exitCode(err) != 2 || !strings.Contains(err.Error(), "--on zone=c matches no node that is there; the nodes have role=gpu, role=web, zone=a, zone=b") {
		t.Errorf("a selector with no match: %v", err)
	}
	// Going back is for the same nodes.
	a.run("announce", short, "--on", "zone=a")
	a.run("announce", "--rollback", short)
	a.becomes("hello")
	a.inState(zoneB, report.Excluded, "announced with --on zone=a")
	if got := zoneB.runContainer(full); got != "again" {
		t.Errorf("on a host that is not meant any more a container prints %q", got)
	}
	if img, err := zoneB.imageStatus(full); err != nil || img.GetPinned() {
		t.Errorf("what is not for this host any more is pinned there: %v, %v", img, err)
	}
	zoneB.wantLeases()
	a.run("announce", "--rollback", short)
	a.becomes("again")
	a.run("announce", short, "--on", "zone=c", "--yes")
	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder("SEEDER_LABELS=zone=c")
	late.ready("again")
}

// TestPlatforms: of an image for two platforms each host holds what its own needs;
// a host whose platform it lacks is excluded, and nobody waits for it.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	arm := n.addHost(newest)
	arm.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded", "SEEDER_CONTAINERD_PLATFORM=linux/arm64")
	unpacks := n.addHost(newest)
	unpacks.startContainerd()
	unpacks.startSeeder("SEEDER_CONTAINERD_PLATFORM=linux/arm64")
	a.awaitMembers(4)
	both := storetest.NewIndex(t, full, 1, "linux/amd64", "linux/arm64")
	a.run("announce", "--from", writeFile(t, n.dir, "both-*.tar", both.OCIArchive(t)))
	b.inState(b, report.Ready, "")
	arm.inState(arm, report.Ready, "")
	arm.inState(unpacks, report.Ready, "")
	if got := b.target(full); got != both.Target.Digest {
		t.Errorf("%s has %s, want the index %s", b.name, got, both.Target.Digest)
	}
	for i, m := range both.Manifests {
		for _, layer := range m.Layers {
			if _, err := b.client().ContentStore().Info(t.Context(), layer.Digest); (err == nil) != (i == 0) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, b.name, err)
			}
			_, err := arm.in(t.Context(), "stat", "/var/lib/seeder/embedded/content/blobs/sha256/"+layer.Digest.Encoded()).CombinedOutput()
			if (err == nil) != (i == 1) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, arm.name, err)
			}
			if _, err := unpacks.client().ContentStore().Info(t.Context(), layer.Digest); (err == nil) != (i == 1) {
				t.Errorf("layer %s of platform %d on %s: %v", layer.Digest, i, unpacks.name, err)
			}
		}
	}
	// A host that holds its own part of it announces it once more: the others keep theirs.
	if out := b.run("announce", full); !strings.Contains(out, "is ready on 4 of 4 nodes") || !strings.Contains(out, "version 1") {
		t.Errorf("announced by a host that holds only its own part:\n%s", out)
	}
	// a announces what it cannot run itself, from an archive and once more from
	// containerd; those that can fetch it from there.
	const only = "docker.io/library/arm-only:v1"
	one := storetest.NewIndex(t, only, 9, "linux/arm64")
	for _, args := range [][]string{{"--from", writeFile(t, n.dir, "arm-*.tar", one.OCIArchive(t))}, {only}} {
		if out := a.run(append([]string{"announce"}, args...)...); !strings.Contains(out, "is ready on 2 of 2 nodes") {
			t.Errorf("announce of an image for arm64 printed:\n%s", out)
		}
	}
	eventually(t, 30*time.Second, "the others are excluded", func() error {
		row, err := arm.image(only)
		if err != nil {
			return err
		}
		for _, c := range row.Nodes {
			if c.Name != arm.name && c.Name != unpacks.name && (c.State != report.Excluded || c.Reason != "the image is for linux/arm64, this host runs linux/amd64") {
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
	n := cluster(t, newest, 2, "")
	loose := n.addHost(newest)
	loose.startContainerd()
	loose.startSeeder("SEEDER_IMAGES_PIN=false")
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(3)
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	b.ready("hello")
	loose.ready("hello")
	b.ctr("images", "label", full, "io.cri-containerd.pinned=")
	eventually(t, 30*time.Second, "the pin is back", func() error {
		img, err := b.imageStatus(full)
		if err == nil && !img.GetPinned() {
			err = errors.New("CRI does not show the image as pinned")
		}
		return err
	})
	if img, err := loose.imageStatus(full); err != nil || img.GetPinned() {
		t.Errorf("pinned in spite of images.pin: false: %v, %v", img, err)
	}
	loose.ctr(append([]string{"images", "rm", "--sync"}, loose.names()...)...)
	a.inState(loose, report.Waiting, "images.pin is off: the kubelet may need the room")
	if names := loose.names(); len(names) > 0 {
		t.Errorf("it is back at once: %v", names)
	}
	// Nobody waits for it to give in: an announcement of a new build comes at once.
	a.importImage(imageSpec{ref: short, says: "again", payload: 1 << 20, seed: 2})
	loose.becomes("again")
}

// TestNoRoom: a host without the room says how much is missing, fetches nothing, and
// goes on by itself when there is room.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 1, "")
	a := n.hosts[0]
	h := n.addHost(newest)
	h.disks(256, 64)
	h.startContainerd()
	h.startSeeder()
	h.sh("busybox dd if=/dev/zero of=" + containerdRoot + "/ballast bs=1M count=40 2>/dev/null")
	a.awaitMembers(2)
	a.importImage(imageSpec{ref: short, says: "hello", random: 16 << 20, seed: 1})
	a.run("announce", short, "--detach")
	a.inState(h, report.Waiting, "images.min_free")
	cells, err := a.states(short)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", h.name, cells[h.name].Reason)
	if want := "the disk of " + containerdRoot; !strings.HasPrefix(cells[h.name].Reason, want) || !strings.Contains(cells[h.name].Reason, "lacks") {
		t.Errorf("%q, want %q … lacks …", cells[h.name].Reason, want)
	}
	if got := h.metric(`seeder_chunk_bytes_total{source="peer"}`); got != 0 {
		t.Errorf("%v bytes were fetched all the same", got)
	}
	h.sh("rm " + containerdRoot + "/ballast")
	h.ready("hello")
	h.wantLeases()
}
