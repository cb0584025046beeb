package hosts

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/store/chunk"
	"seeder/test/harness"
)

// TestFromEachOther: hosts that fetch take chunks from several peers at once,
// also from those that are still fetching, so that the announcer sends little
// more than one copy.
func TestFromEachOther(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 4, "100mbit")
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 24 << 20, Seed: 1})
	a := n.Hosts[0]
	a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
	start := time.Now()
	a.Run("announce", harness.ShortName)
	took := time.Since(start)
	size := float64(img.Bytes())
	optimum := time.Duration(size * 8 / 100e6 * float64(time.Second))
	t.Logf("%.1f MB to 3 hosts over 100 Mbit/s in %v: one copy over one link takes %v", size/1e6, took.Round(time.Millisecond), optimum.Round(time.Millisecond))
	for _, h := range n.Hosts {
		sent := h.Metric("seeder_wire_sent_bytes_total")
		t.Logf("%s sent %.1f MB, %.2f copies", h.Name, sent/1e6, sent/size)
		if h == a && sent > 1.6*size {
			t.Errorf("the announcer sent %.2f copies", sent/size)
		}
		if h != a && sent < size/10 {
			t.Errorf("%s sent only %.2f copies while it was fetching", h.Name, sent/size)
		}
	}
	// The announcer alone would need three copies' time.
	if took > 3*optimum {
		t.Errorf("took %v, as long as three copies one after the other", took)
	}
}

// TestUnpacksWhileLayersArrive: the first layer is unpacked while later ones have not
// come yet.
func TestUnpacksWhileLayersArrive(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "20mbit")
	const layers, size = 4, 3 << 20
	var tars [][]byte
	for i := range uint64(layers) {
		tars = append(tars, harness.TarOf(t, map[string][]byte{fmt.Sprintf("data/%d", i): harness.Noise(i, size)}))
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.Ctr("images", "import", harness.PackImage(t, harness.ShortName, false, tars...).DockerArchive(t, n.Dir))
	a.Run("announce", "--detach", harness.ShortName)
	harness.Eventually(t, 60*time.Second, "the first layer is unpacked", func() error {
		if s := b.Ctr("snapshots", "ls"); !strings.Contains(s, "sha256:") {
			return errors.New(s)
		}
		return nil
	})
	arrived := b.Metric(`seeder_chunk_bytes_total{source="peer"}`)
	t.Logf("%.1f of %.1f MB had arrived when the first of %d layers was seen unpacked", arrived/1e6, layers*size/1e6, layers)
	if arrived > 3*size {
		t.Errorf("%.0f bytes had arrived, want at most three layers of %d", arrived, size)
	}
	a.Run("wait", "--timeout", "1m")
	log := b.Seeder.Log.String()
	if !strings.Contains(log, "layers are unpacked side by side") && !strings.Contains(log, "this host has one core") {
		t.Errorf("%s does not unpack side by side, and does not say why", b.Name)
	}
}

// TestContinuesAfterKill: what was verified before a kill -9 is not fetched again.
func TestContinuesAfterKill(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "40mbit")
	const size = 24 << 20
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: size, Seed: 1})
	n.Hosts[0].Run("announce", "--detach", harness.ShortName)
	h := n.Hosts[1]
	var before float64
	harness.Eventually(t, 30*time.Second, "a third has arrived", func() error {
		if before = h.Metric(`seeder_chunk_bytes_total{source="peer"}`); before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	h.Seeder.Stop(t, syscall.SIGKILL)
	h.StartSeeder()
	h.Ready("hello")
	kept, fetched := h.Metric(`seeder_chunk_bytes_total{source="local"}`), h.Metric(`seeder_chunk_bytes_total{source="peer"}`)
	received := h.Metric("seeder_wire_received_bytes_total")
	t.Logf("before the kill %.1f MB of chunks; after it %.1f MB were there, %.1f MB were fetched, %.1f MB on the wire", before/1e6, kept/1e6, fetched/1e6, received/1e6)
	if kept < before {
		t.Errorf("of %.0f bytes verified before the kill %.0f were there after it", before, kept)
	}
	if received > 1.02*fetched+256<<10 {
		t.Errorf("%.0f bytes came for %.0f that were missing", received, fetched)
	}
}

// TestFramesOnTheWire: a plain layer shrinks on the way, compressed by the announcer
// alone; a gzip layer is not compressed again and does not grow.
func TestFramesOnTheWire(t *testing.T) {
	n := harness.NewNetwork(t, "")
	host := func() *harness.Host {
		h := n.AddHost(harness.Newest)
		// The cache of frames leaves 17 % of a disk free, and this machine's may be fuller.
		h.Sh("mkdir -p " + dataDir + " && mount -t tmpfs -o size=256m tmpfs " + dataDir)
		h.StartContainerd()
		h.StartSeeder()
		return h
	}
	a, b := host(), host()
	a.AwaitMembers(2)
	for _, gz := range []bool{false, true} { // less than 16 MiB: before that no raw chunks are tried
		spec := harness.ImageSpec{Ref: fmt.Sprintf("frames:gzip-%v", gz), Says: "hello", Payload: 8 << 20, Gzip: gz, Seed: 10}
		img := harness.NewImage(t, spec)
		before, compressed := b.Metric("seeder_wire_received_bytes_total"), a.Metric("seeder_chunks_compressed_total")
		a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
		a.Run("announce", spec.Ref)
		wire, size := b.Metric("seeder_wire_received_bytes_total")-before, float64(img.Bytes())
		t.Logf("gzip %v: %.2f MB on the wire for %.2f MB", gz, wire/1e6, size/1e6)
		if !gz && wire > 0.6*size {
			t.Errorf("plain layers took %.0f bytes on the wire: they were not compressed", wire)
		}
		// One chunk may come twice where the machine stalls for longer than its
		// deadline.
		if gz && wire > 1.01*size+64<<10+256<<10 {
			t.Errorf("gzip layers took %.0f bytes on the wire, %.0f as stored", wire, size)
		}
		chunks := 0
		for _, b := range img.Blobs() {
			chunks += chunk.Chunks(int64(len(b)), chunk.SizeFor(int64(len(b))))
		}
		compressed = a.Metric("seeder_chunks_compressed_total") - compressed
		t.Logf("gzip %v: %.0f of %d chunks were compressed", gz, compressed, chunks)
		if !gz && compressed < 8<<20/chunk.MinBytes || compressed > float64(chunks) {
			t.Errorf("%.0f of %d chunks were compressed", compressed, chunks)
		}
	}
	late := host() // has the frames from both
	a.AwaitMembers(3)
	a.Run("wait", "--timeout", "1m")
	for _, h := range []*harness.Host{b, late} {
		if got := h.Metric("seeder_chunks_compressed_total"); got > 0 {
			t.Errorf("%s compressed %.0f chunks that came as frames", h.Name, got)
		}
	}
}

// TestStorageOnlyNode: a node on the embedded store is a member like others; it
// holds and seeds.
func TestStorageOnlyNode(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	archive := n.AddHost(harness.Newest)
	archive.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	n.Hosts[0].AwaitMembers(3)
	n.Hosts[0].ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	n.Hosts[0].Run("announce", harness.ShortName)
	n.Hosts[1].Ready("hello")
	archive.InState(archive, "ready", "")

	// Everybody else is gone: the archive alone gives the image to a new host.
	n.Hosts[0].Seeder.Stop(t, syscall.SIGTERM)
	n.Hosts[1].Seeder.Stop(t, syscall.SIGTERM)
	late := n.AddHost(harness.Newest)
	late.StartContainerd()
	late.StartSeeder("SEEDER_GOSSIP_JOIN=" + archive.Address)
	late.Ready("hello")

	// And it may announce: an archive file goes into its own store.
	own := harness.ImageSpec{Ref: harness.ShortName, Says: "from the archive", Payload: 1 << 20, Seed: 2}
	archive.Run("announce", "--from", harness.NewImage(t, own).DockerArchive(t, n.Dir))
	late.Ready(own.Says)
}

// TestPacketLoss: with 2 % of all packets lost on every link the image arrives,
// and nobody is taken for dead.
func TestPacketLoss(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "100mbit")
	for _, h := range n.Hosts {
		drop(h, 2)
	}
	a := n.Hosts[0]
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 16 << 20, Seed: 1})
	a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
	start := time.Now()
	a.Run("announce", harness.ShortName)
	t.Logf("%.1f MB to 2 hosts over 100 Mbit/s with 2 %% loss in %v", float64(img.Bytes())/1e6, time.Since(start).Round(time.Millisecond))
	for _, h := range n.Hosts {
		h.Ready("hello")
		h.AwaitMembers(3)
	}
}

// TestGossipUnderBulk: while bulk data fills every link, no member is taken for
// dead and an announcement still gets through.
func TestGossipUnderBulk(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "20mbit")
	a, b := n.Hosts[0], n.Hosts[1]
	a.ImportImage(harness.ImageSpec{Ref: "bulk:latest", Says: "hello", Random: 24 << 20, Seed: 1}) // 10 s on the link
	a.Run("announce", "--detach", "bulk:latest")
	harness.Eventually(t, 20*time.Second, "the link is busy", func() error {
		if got := b.Metric("seeder_wire_received_bytes_total"); got < 1<<20 {
			return fmt.Errorf("%.0f bytes", got)
		}
		return nil
	})
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 10, Seed: 2})
	start := time.Now()
	a.Run("announce", "--detach", harness.ShortName)
	harness.Eventually(t, 10*time.Second, "the other hosts know of the small image", func() error {
		_, err := b.Image(harness.ShortName)
		return err
	})
	t.Logf("known elsewhere after %v", time.Since(start).Round(time.Millisecond))
	for ended := false; !ended; {
		for _, h := range n.Hosts {
			var out report.Members
			if err := h.Try(&out, "members"); err != nil {
				t.Fatal(err)
			}
			for _, m := range out.Members {
				if m.State != "alive" {
					t.Fatalf("%s says that %s is %s", h.Name, m.Name, m.State)
				}
			}
		}
		row, err := a.Image("bulk:latest")
		if err != nil {
			t.Fatal(err)
		}
		ended = row.Ready == row.Total
	}
	b.Ready("hello")
}
