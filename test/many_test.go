package test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"seeder/p2p/report"
)

// fromPeers counts what a host has fetched.
const fromPeers = `seeder_chunk_bytes_total{source="peer"}`

// small makes images that cost next to nothing: two layers, of which they share one.
func small(t *testing.T, from, to int) (imgs []*image) {
	t.Helper()
	shared := tarOf(t, map[string][]byte{"etc/shared": words(1, 4000)})
	for i := from; i < to; i++ {
		own := tarOf(t, map[string][]byte{"etc/own": words(uint64(i), 1000)})
		imgs = append(imgs, packImage(t, fmt.Sprintf("docker.io/library/app-%03d:v1", i), false, shared, own))
	}
	return imgs
}

// allReady waits until a host sees so many announced images ready on every host.
func (n *network) allReady(images int) {
	n.t.Helper()
	first := n.hosts[0]
	eventually(n.t, 4*time.Minute, fmt.Sprintf("%d images are ready on %d hosts", images, len(n.hosts)), func() error {
		var out report.Images
		if err := first.try(&out, "images"); err != nil {
			return err
		}
		ready := 0
		for _, row := range out.Images {
			if row.Ready == len(n.hosts) && row.Total == len(n.hosts) {
				ready++
			}
		}
		if ready != images || len(out.Images) != images {
			return fmt.Errorf("%d of %d", ready, len(out.Images))
		}
		return nil
	})
}

// TestManyImages: an archive of 500 images, then 50 announcements at the same
// moment, reach five hosts, and nothing is left of the work. Three of the hosts hold
// images in stores of their own: five containerds are more than the machine can do in
// a minute.
func TestManyImages(t *testing.T) {
	n := newNetwork(t, "")
	for i := range 5 {
		h := n.addHost(newest)
		if i < 2 {
			h.startContainerd()
			h.startSeeder()
		} else {
			h.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
		}
	}
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(5)
	begun := time.Now()
	out := a.runWithin(8*time.Minute, "announce", "--timeout", "7m", "--from", dockerArchive(t, n.dir, small(t, 0, 500)...))
	if got := strings.Count(out, "is ready on 5 of 5 nodes"); got != 500 {
		t.Errorf("%d of 500 images are said to be ready", got)
	}
	n.allReady(500)
	t.Logf("500 images of one archive were ready on 5 hosts after %v", time.Since(begun).Round(time.Millisecond))

	more := small(t, 500, 550)
	a.ctr("images", "import", dockerArchive(t, n.dir, more...))
	begun = time.Now()
	var all sync.WaitGroup
	for _, img := range more {
		all.Go(func() {
			if err := a.try(nil, "announce", "--detach", img.ref); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	n.allReady(550)
	t.Logf("50 announcements at once were ready on 5 hosts after %v", time.Since(begun).Round(time.Millisecond))
	a.wantLeases()
	b.wantLeases()
	for _, h := range n.hosts {
		rss := residentBytes(t, h.seeder.pid)
		t.Logf("seeder on %s: %.0f MB resident", h.name, rss/1e6)
		if rss > 192<<20 {
			t.Errorf("seeder on %s has %.0f MB resident", h.name, rss/1e6)
		}
	}
}

// TestSharedLayer: a layer that 30 images share travels to each host once.
func TestSharedLayer(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a := n.hosts[0]
	const layerBytes = 8 << 20
	shared := tarOf(t, map[string][]byte{"data": noise(1, layerBytes)})
	var imgs []*image
	for i := range 30 {
		own := tarOf(t, map[string][]byte{"own": words(uint64(i), 1000)})
		imgs = append(imgs, packImage(t, fmt.Sprintf("docker.io/library/app-%02d:v1", i), false, shared, own))
	}
	a.run("announce", "--from", dockerArchive(t, n.dir, imgs...))
	n.allReady(len(imgs))
	for _, h := range n.hosts[1:] {
		got := h.metric(fromPeers)
		t.Logf("%s fetched %.2f MB for 30 images that share %.2f MB", h.name, got/1e6, float64(layerBytes)/1e6)
		if got > 1.2*layerBytes {
			t.Errorf("%s fetched %.0f bytes for a layer of %d", h.name, got, layerBytes)
		}
	}
}

// TestShapesOfImages: many layers, a layer with nothing in it, and a second tag of
// the same image, for which nothing travels.
func TestShapesOfImages(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	img := newImage(t, imageSpec{ref: short, says: "hello", seed: 1})
	layers := [][]byte{img.layers[0], tarOf(t, nil)}
	for i := range 17 {
		layers = append(layers, tarOf(t, map[string][]byte{fmt.Sprintf("data/%d", i): words(uint64(i), 10_000)}))
	}
	img = packImage(t, full, false, append(layers, img.layers[2])...)
	if len(img.layers) != 20 {
		t.Fatalf("%d layers", len(img.layers))
	}
	a.ctr("images", "import", img.ociArchive(t, n.dir))
	a.run("announce", short)
	b.ready("hello")
	b.complete()
	before := b.metric(fromPeers)
	a.ctr("images", "tag", full, "docker.io/library/k3s-dashboard:v1")
	a.run("announce", "k3s-dashboard:v1")
	if got := b.runContainer("docker.io/library/k3s-dashboard:v1"); got != "hello" {
		t.Errorf("a container from the second tag prints %q", got)
	}
	if got := b.metric(fromPeers); got != before {
		t.Errorf("%v bytes travelled for a second tag", got-before)
	}
	// Each tag goes its own way.
	a.run("withdraw", "--purge", short)
	b.purged(full)
	if got := b.runContainer("docker.io/library/k3s-dashboard:v1"); got != "hello" {
		t.Errorf("without the first tag, a container from the second prints %q", got)
	}
}

// TestHugeLayer: one layer of 5 GB, streamed into the announcing daemon, takes no
// more memory than any other and no second copy on the announcing host's disk.
func TestHugeLayer(t *testing.T) {
	const sizeBytes, needBytes = 5e9, 40e9
	var fs unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &fs); err != nil {
		t.Fatal(err)
	}
	if free := float64(fs.Bavail) * float64(fs.Bsize); free < needBytes {
		t.Skipf("a layer of 5 GB on two hosts needs %.0f GB of disk, %.1f GB are free", needBytes/1e9, free/1e9)
	}
	n := newNetwork(t, "")
	for range 2 {
		h := n.addHost(newest)
		h.startContainerd()
		h.startSeeder("SEEDER_IMAGES_MIN_FREE=1%")
	}
	a, b := n.hosts[0], n.hosts[1]
	a.awaitMembers(2)
	huge := newStreamed(t, sizeBytes, repeated)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := a.in(ctx, seederBin(t), "announce", "--from", "-")
	r, w := io.Pipe()
	cmd.Stdin = r
	go func() { w.CloseWithError(huge.write(w)) }() // ends with the command, which closes r or reads to the end
	begun := time.Now()
	out := run(t, cmd)
	r.Close()
	t.Logf("ready on both hosts after %v", time.Since(begun).Round(10*time.Millisecond))
	if !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("printed:\n%s", out)
	}
	for _, h := range n.hosts {
		peak := peakRSS(t, h.seeder.pid)
		t.Logf("%s: peak of %.0f MB resident", h.name, peak/1e6)
		if peak > 192<<20 {
			t.Errorf("seeder on %s had %.0f MB resident", h.name, peak/1e6)
		}
	}
	b.complete()
	b.wantLeases()
	a.wantLeases()
}
