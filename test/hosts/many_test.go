package hosts

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
	"seeder/test/harness"
)

// fromPeers counts what a host has fetched.
const fromPeers = `seeder_chunk_bytes_total{source="peer"}`

// small makes images that cost next to nothing: two layers, of which they share one.
func small(t *testing.T, from, to int) (imgs []*harness.Image) {
	t.Helper()
	shared := harness.TarOf(t, map[string][]byte{"etc/shared": harness.Words(1, 4000)})
	for i := from; i < to; i++ {
		own := harness.TarOf(t, map[string][]byte{"etc/own": harness.Words(uint64(i), 1000)})
		imgs = append(imgs, harness.PackImage(t, fmt.Sprintf("docker.io/library/app-%03d:v1", i), false, shared, own))
	}
	return imgs
}

// allReady waits until a host sees so many announced images ready on every host.
func allReady(n *harness.Network, images int) {
	n.T.Helper()
	first := n.Hosts[0]
	harness.Eventually(n.T, 4*time.Minute, fmt.Sprintf("%d images are ready on %d hosts", images, len(n.Hosts)), func() error {
		var out report.Images
		if err := first.Try(&out, "images"); err != nil {
			return err
		}
		ready := 0
		for _, row := range out.Images {
			if row.Ready == len(n.Hosts) && row.Total == len(n.Hosts) {
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
	n := harness.NewNetwork(t, "")
	for i := range 5 {
		h := n.AddHost(harness.Newest)
		if i < 2 {
			h.StartContainerd()
			h.StartSeeder()
		} else {
			h.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
		}
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(5)
	begun := time.Now()
	out := a.RunWithin(8*time.Minute, "announce", "--timeout", "7m", "--from", harness.DockerArchive(t, n.Dir, small(t, 0, 500)...))
	if got := strings.Count(out, "is ready on 5 of 5 nodes"); got != 500 {
		t.Errorf("%d of 500 images are said to be ready", got)
	}
	allReady(n, 500)
	t.Logf("500 images of one archive were ready on 5 hosts after %v", time.Since(begun).Round(time.Millisecond))

	more := small(t, 500, 550)
	a.Ctr("images", "import", harness.DockerArchive(t, n.Dir, more...))
	begun = time.Now()
	var all sync.WaitGroup
	for _, img := range more {
		all.Go(func() {
			if err := a.Try(nil, "announce", "--detach", img.Ref); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	allReady(n, 550)
	t.Logf("50 announcements at once were ready on 5 hosts after %v", time.Since(begun).Round(time.Millisecond))
	wantLeases(a)
	wantLeases(b)
	for _, h := range n.Hosts {
		rss := harness.ResidentBytes(t, h.Seeder.PID)
		t.Logf("seeder on %s: %.0f MB resident", h.Name, rss/1e6)
		if rss > 128<<20 {
			t.Errorf("seeder on %s has %.0f MB resident", h.Name, rss/1e6)
		}
	}
}

// TestSharedLayer: a layer that 30 images share travels to each host once.
func TestSharedLayer(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a := n.Hosts[0]
	const layerBytes = 8 << 20
	shared := harness.TarOf(t, map[string][]byte{"data": harness.Noise(1, layerBytes)})
	var imgs []*harness.Image
	for i := range 30 {
		own := harness.TarOf(t, map[string][]byte{"own": harness.Words(uint64(i), 1000)})
		imgs = append(imgs, harness.PackImage(t, fmt.Sprintf("docker.io/library/app-%02d:v1", i), false, shared, own))
	}
	a.Run("announce", "--from", harness.DockerArchive(t, n.Dir, imgs...))
	allReady(n, len(imgs))
	for _, h := range n.Hosts[1:] {
		got := h.Metric(fromPeers)
		t.Logf("%s fetched %.2f MB for 30 images that share %.2f MB", h.Name, got/1e6, float64(layerBytes)/1e6)
		if got > 1.2*layerBytes {
			t.Errorf("%s fetched %.0f bytes for a layer of %d", h.Name, got, layerBytes)
		}
	}
}

// TestShapesOfImages: many layers, a layer with nothing in it, and a second tag of
// the same image, for which nothing travels.
func TestShapesOfImages(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Seed: 1})
	layers := [][]byte{img.Layers[0], harness.TarOf(t, nil)}
	for i := range 17 {
		layers = append(layers, harness.TarOf(t, map[string][]byte{fmt.Sprintf("data/%d", i): harness.Words(uint64(i), 10_000)}))
	}
	img = harness.PackImage(t, harness.FullName, false, append(layers, img.Layers[2])...)
	if len(img.Layers) != 20 {
		t.Fatalf("%d layers", len(img.Layers))
	}
	a.Ctr("images", "import", img.OCIArchive(t, n.Dir))
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	complete(b)
	before := b.Metric(fromPeers)
	a.Ctr("images", "tag", harness.FullName, "docker.io/library/k3s-dashboard:v1")
	a.Run("announce", "k3s-dashboard:v1")
	if got := b.RunContainer("docker.io/library/k3s-dashboard:v1"); got != "hello" {
		t.Errorf("a container from the second tag prints %q", got)
	}
	if got := b.Metric(fromPeers); got != before {
		t.Errorf("%v bytes travelled for a second tag", got-before)
	}
	// Each tag goes its own way.
	a.Run("withdraw", "--purge", harness.ShortName)
	purged(b, harness.FullName)
	if got := b.RunContainer("docker.io/library/k3s-dashboard:v1"); got != "hello" {
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
	n := harness.NewNetwork(t, "")
	for range 2 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_IMAGES_MIN_FREE=1%")
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(2)
	huge := harness.NewStreamed(t, sizeBytes, harness.Repeated)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := a.In(ctx, harness.SeederBin(t), "announce", "--from", "-")
	r, w := io.Pipe()
	cmd.Stdin = r
	go func() { w.CloseWithError(huge.Write(w)) }() // ends with the command, which closes r or reads to the end
	begun := time.Now()
	out := harness.Run(t, cmd)
	r.Close()
	t.Logf("ready on both hosts after %v", time.Since(begun).Round(10*time.Millisecond))
	if !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("printed:\n%s", out)
	}
	for _, h := range n.Hosts {
		peak := harness.PeakRSS(t, h.Seeder.PID)
		t.Logf("%s: peak of %.0f MB resident", h.Name, peak/1e6)
		if peak > 128<<20 {
			t.Errorf("seeder on %s had %.0f MB resident", h.Name, peak/1e6)
		}
	}
	complete(b)
	wantLeases(b)
	wantLeases(a)
}
