package hosts

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// TestAnnounceEverywhere is the main job on every containerd: what one of three
// hosts announces becomes runnable on all, whichever host announces, also one
// that received the image; a new build moves them all.
func TestAnnounceEverywhere(t *testing.T) {
	for version := range harness.Containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			n := harness.NewCluster(t, version, 3, "")
			first, last := n.Hosts[0], n.Hosts[2]
			first.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello one", Payload: 6 << 20, Random: 1 << 20, Seed: 1})
			t.Log(first.Run("announce", harness.ShortName))
			for _, h := range n.Hosts {
				h.Ready("hello one")
				complete(h)
			}
			last.Run("announce", harness.ShortName)
			last.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello two", Payload: 6 << 20, Random: 2 << 20, Seed: 2})
			last.Run("announce", harness.ShortName)
			for _, h := range n.Hosts {
				h.Ready("hello two")
				complete(h)
			}
		})
	}
}

// complete checks what containerd itself has of the image: names, pin, nothing
// leased any more; and that CRI finds it by each form of its name.
func complete(h *harness.Host) {
	h.T.Helper()
	named(h)
	if leases, _ := leasedForWork(h); len(leases) > 0 {
		h.T.Errorf("%s has leases left: %s", h.Name, leases)
	}
}

// named is complete where an import may be at work, which holds a lease.
func named(h *harness.Host) {
	h.T.Helper()
	list := h.Ctr("images", "ls")
	for _, want := range []string{harness.FullName, "docker.io/library/k3s-dashboard@sha256:", "io.cri-containerd.pinned=pinned"} {
		if !strings.Contains(list, want) {
			h.T.Errorf("ctr images ls on %s lacks %s:\n%s", h.Name, want, list)
		}
	}
	if check := h.Ctr("images", "check", "name=="+harness.FullName); !strings.Contains(check, "complete") {
		h.T.Errorf("ctr images check on %s:\n%s", h.Name, check)
	}
	row, err := h.Image(harness.ShortName)
	if err != nil {
		h.T.Fatal(err)
	}
	byName, err := h.ImageStatus(harness.FullName)
	if err != nil || byName == nil {
		h.T.Fatalf("CRI on %s: %v %v", h.Name, byName, err)
	}
	for _, form := range []string{harness.ShortName, "k3s-dashboard", "docker.io/library/k3s-dashboard@" + row.Digest, byName.Id} {
		if got, err := h.ImageStatus(form); err != nil || got.GetId() != byName.Id {
			h.T.Errorf("ImageStatus of %s on %s: %v, %v; want %s", form, h.Name, got, err, byName.Id)
		}
	}
	if !slices.Contains(byName.RepoTags, harness.FullName) || !slices.Contains(byName.RepoDigests, "docker.io/library/k3s-dashboard@"+row.Digest) {
		h.T.Errorf("CRI on %s knows it as %v and %v", h.Name, byName.RepoTags, byName.RepoDigests)
	}
}

// TestAnnounceArchive: announce --from FILE brings an image into containerd and
// to every host.
func TestAnnounceArchive(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	plain := harness.ImageSpec{Ref: harness.ShortName, Says: "from docker save", Payload: 2 << 20, Seed: 1}
	n.Hosts[0].Run("announce", "--from", harness.NewImage(t, plain).DockerArchive(t, n.Dir))
	for _, h := range n.Hosts {
		h.Ready(plain.Says)
	}
	packed := harness.ImageSpec{Ref: harness.ShortName, Says: "from an OCI layout", Payload: 2 << 20, Gzip: true, Seed: 2}
	layout := harness.WriteFile(t, n.Dir, "oci-*.tar.gz", harness.Gzipped(t, harness.TarOf(t, harness.NewImage(t, packed).OCILayout(t))))
	n.Hosts[1].Run("announce", "--from", layout, harness.ShortName)
	for _, h := range n.Hosts {
		h.Ready(packed.Says)
		complete(h)
	}
}

// TestWithdraw: withdraw stops the seeding and keeps the image; --purge removes
// it from every host.
func TestWithdraw(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	b.Run("withdraw", harness.ShortName)
	late := n.AddHost(harness.Newest)
	late.StartContainerd()
	late.StartSeeder()
	harness.Eventually(t, 30*time.Second, "the late host knows that it is withdrawn", func() error {
		row, err := late.Image(harness.ShortName)
		if err == nil && row.State != "withdrawn" {
			err = errors.New(row.State)
		}
		return err
	})
	if got := b.RunContainer(harness.FullName); got != "hello" {
		t.Errorf("a withdrawn image prints %q", got)
	}
	harness.Eventually(t, 10*time.Second, "the kubelet may collect the withdrawn image", func() error {
		if list := b.Ctr("images", "ls"); strings.Contains(list, "pinned") {
			return errors.New(list)
		}
		return nil
	})
	a.Run("announce", harness.ShortName)
	late.Ready("hello")
	a.Run("withdraw", "--purge", harness.ShortName)
	for _, h := range n.Hosts {
		harness.Eventually(t, 30*time.Second, "the image is gone from "+h.Name, func() error {
			if list := h.Ctr("images", "ls", "-q"); strings.Contains(list, "k3s-dashboard") {
				return errors.New(list)
			}
			return nil
		})
		if img, err := h.ImageStatus(harness.FullName); img != nil || err != nil {
			t.Errorf("CRI on %s: %v %v", h.Name, img, err)
		}
	}
}

// TestBadAnnounce: what cannot be announced is refused with what is near or
// lacks, and leaves nothing.
func TestBadAnnounce(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 1, "")
	h := n.Hosts[0]
	h.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	if err := h.Try(nil, "announce", "k3s-dashbord:latest"); harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "k3s-dashboard:latest") {
		t.Errorf("unknown reference: %v, want the nearest named", err)
	}
	layer := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1}).Layers[1]
	dgst := harness.Describe("", layer).Digest.String()
	h.Ctr("content", "rm", dgst)
	err := h.Try(nil, "announce", harness.ShortName)
	if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), dgst) || !strings.Contains(err.Error(), "discard_unpacked_layers") {
		t.Errorf("layer %s missing: %v, want it named", dgst, err)
	}
	before := h.Ctr("content", "ls", "-q")
	junk := filepath.Join(n.Dir, "junk.tar")
	harness.Run(t, exec.Command("sh", "-c", "head -c 100000 /dev/urandom > "+junk))
	if err := h.Try(nil, "announce", "--from", junk, "junk:latest"); harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "docker-archive or OCI-layout") {
		t.Errorf("not an archive: %v", err)
	}
	whole := harness.TarOf(t, harness.NewImage(t, harness.ImageSpec{Ref: "cut:latest", Says: "hello", Payload: 1 << 20, Seed: 9}).OCILayout(t))
	cut := harness.WriteFile(t, n.Dir, "cut-*.tar", whole[:len(whole)/2])
	if err := h.Try(nil, "announce", "--from", cut); harness.ExitCode(err) != 1 {
		t.Errorf("half an archive: %v", err)
	}
	// containerd waits fifty times as long as its last collection took (pause_threshold).
	harness.Eventually(t, time.Minute, "containerd collects what bad archives brought", func() error {
		for d := range strings.Lines(h.Ctr("content", "ls", "-q")) {
			if !strings.Contains(before, d) {
				return errors.New("left behind: " + d)
			}
		}
		return nil
	})
	if names := h.Ctr("images", "ls", "-q"); strings.Contains(names, "junk") || strings.Contains(names, "cut") {
		t.Errorf("bad archives left names behind: %s", names)
	}
	var images report.Images
	if err := h.Try(&images, "images"); err != nil || len(images.Images) != 0 {
		t.Errorf("announced in spite of errors: %+v %v", images, err)
	}
}
