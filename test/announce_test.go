package test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
)

// TestAnnounceEverywhere is the main job on every containerd: what one of three
// hosts announces becomes runnable on all, whichever host announces, also one
// that received the image; a new build moves them all.
func TestAnnounceEverywhere(t *testing.T) {
	for version := range containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			n := cluster(t, version, 3, "")
			first, last := n.hosts[0], n.hosts[2]
			first.importImage(imageSpec{ref: short, says: "hello one", payload: 6 << 20, random: 1 << 20, seed: 1})
			t.Log(first.run("announce", short))
			for _, h := range n.hosts {
				h.ready("hello one")
				h.complete()
			}
			last.run("announce", short)
			last.importImage(imageSpec{ref: short, says: "hello two", payload: 6 << 20, random: 2 << 20, seed: 2})
			last.run("announce", short)
			for _, h := range n.hosts {
				h.ready("hello two")
				h.complete()
			}
		})
	}
}

// complete checks what containerd itself has of the image: names, pin, nothing
// leased any more; and that CRI finds it by each form of its name.
func (h *host) complete() {
	h.t.Helper()
	h.named()
	if leases, _ := h.leasedForWork(); len(leases) > 0 {
		h.t.Errorf("%s has leases left: %s", h.name, leases)
	}
}

// named is complete where an import may be at work, which holds a lease.
func (h *host) named() {
	h.t.Helper()
	list := h.ctr("images", "ls")
	for _, want := range []string{full, "docker.io/library/k3s-dashboard@sha256:", "io.cri-containerd.pinned=pinned"} {
		if !strings.Contains(list, want) {
			h.t.Errorf("ctr images ls on %s lacks %s:\n%s", h.name, want, list)
		}
	}
	if check := h.ctr("images", "check", "name=="+full); !strings.Contains(check, "complete") {
		h.t.Errorf("ctr images check on %s:\n%s", h.name, check)
	}
	row, err := h.image(short)
	if err != nil {
		h.t.Fatal(err)
	}
	byName, err := h.imageStatus(full)
	if err != nil || byName == nil {
		h.t.Fatalf("CRI on %s: %v %v", h.name, byName, err)
	}
	for _, form := range []string{short, "k3s-dashboard", "docker.io/library/k3s-dashboard@" + row.Digest, byName.Id} {
		if got, err := h.imageStatus(form); err != nil || got.GetId() != byName.Id {
			h.t.Errorf("ImageStatus of %s on %s: %v, %v; want %s", form, h.name, got, err, byName.Id)
		}
	}
	if !slices.Contains(byName.RepoTags, full) || !slices.Contains(byName.RepoDigests, "docker.io/library/k3s-dashboard@"+row.Digest) {
		h.t.Errorf("CRI on %s knows it as %v and %v", h.name, byName.RepoTags, byName.RepoDigests)
	}
}

// TestAnnounceArchive: announce --from FILE brings an image into containerd and
// to every host.
func TestAnnounceArchive(t *testing.T) {
	n := cluster(t, newest, 2, "")
	plain := imageSpec{ref: short, says: "from docker save", payload: 2 << 20, seed: 1}
	n.hosts[0].run("announce", "--from", newImage(t, plain).dockerArchive(t, n.dir))
	for _, h := range n.hosts {
		h.ready(plain.says)
	}
	packed := imageSpec{ref: short, says: "from an OCI layout", payload: 2 << 20, gzip: true, seed: 2}
	layout := writeFile(t, n.dir, "oci-*.tar.gz", gzipped(t, tarOf(t, newImage(t, packed).ociLayout(t))))
	n.hosts[1].run("announce", "--from", layout, short)
	for _, h := range n.hosts {
		h.ready(packed.says)
		h.complete()
	}
}

// TestWithdraw: withdraw stops the seeding and keeps the image; --purge removes
// it from every host.
func TestWithdraw(t *testing.T) {
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	b.ready("hello")
	b.run("withdraw", short)
	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder()
	eventually(t, 30*time.Second, "the late host knows that it is withdrawn", func() error {
		row, err := late.image(short)
		if err == nil && row.State != "withdrawn" {
			err = errors.New(row.State)
		}
		return err
	})
	if got := b.runContainer(full); got != "hello" {
		t.Errorf("a withdrawn image prints %q", got)
	}
	eventually(t, 10*time.Second, "the kubelet may collect the withdrawn image", func() error {
		if list := b.ctr("images", "ls"); strings.Contains(list, "pinned") {
			return errors.New(list)
		}
		return nil
	})
	a.run("announce", short)
	late.ready("hello")
	a.run("withdraw", "--purge", short)
	for _, h := range n.hosts {
		eventually(t, 30*time.Second, "the image is gone from "+h.name, func() error {
			if list := h.ctr("images", "ls", "-q"); strings.Contains(list, "k3s-dashboard") {
				return errors.New(list)
			}
			return nil
		})
		if img, err := h.imageStatus(full); img != nil || err != nil {
			t.Errorf("CRI on %s: %v %v", h.name, img, err)
		}
	}
}

// TestBadAnnounce: what cannot be announced is refused with what is near or
// lacks, and leaves nothing.
func TestBadAnnounce(t *testing.T) {
	n := cluster(t, newest, 1, "")
	h := n.hosts[0]
	h.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	if err := h.try(nil, "announce", "k3s-dashbord:latest"); exitCode(err) != 1 || !strings.Contains(err.Error(), "k3s-dashboard:latest") {
		t.Errorf("unknown reference: %v, want the nearest named", err)
	}
	layer := newImage(t, imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1}).layers[1]
	dgst := describe("", layer).Digest.String()
	h.ctr("content", "rm", dgst)
	err := h.try(nil, "announce", short)
	if exitCode(err) != 1 || !strings.Contains(err.Error(), dgst) || !strings.Contains(err.Error(), "discard_unpacked_layers") {
		t.Errorf("layer %s missing: %v, want it named", dgst, err)
	}
	before := h.ctr("content", "ls", "-q")
	junk := filepath.Join(n.dir, "junk.tar")
	run(t, exec.Command("sh", "-c", "head -c 100000 /dev/urandom > "+junk))
	if err := h.try(nil, "announce", "--from", junk, "junk:latest"); exitCode(err) != 1 || !strings.Contains(err.Error(), "docker-archive or OCI-layout") {
		t.Errorf("not an archive: %v", err)
	}
	whole := tarOf(t, newImage(t, imageSpec{ref: "cut:latest", says: "hello", payload: 1 << 20, seed: 9}).ociLayout(t))
	cut := writeFile(t, n.dir, "cut-*.tar", whole[:len(whole)/2])
	if err := h.try(nil, "announce", "--from", cut); exitCode(err) != 1 {
		t.Errorf("half an archive: %v", err)
	}
	eventually(t, 10*time.Second, "containerd collects what bad archives brought", func() error {
		for d := range strings.Lines(h.ctr("content", "ls", "-q")) {
			if !strings.Contains(before, d) {
				return errors.New("left behind: " + d)
			}
		}
		return nil
	})
	if names := h.ctr("images", "ls", "-q"); strings.Contains(names, "junk") || strings.Contains(names, "cut") {
		t.Errorf("bad archives left names behind: %s", names)
	}
	var images report.Images
	if err := h.try(&images, "images"); err != nil || len(images.Images) != 0 {
		t.Errorf("announced in spite of errors: %+v %v", images, err)
	}
}
