package test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/store/chunk"
)

// TestFromEachOther: hosts that fetch take chunks from several peers at once,
// also from those that are still fetching, so that the announcer sends little
// more than one copy.
func TestFromEachOther(t *testing.T) {
	n := cluster(t, newest, 4, "100mbit")
	img := newImage(t, imageSpec{ref: short, says: "hello", random: 24 << 20, seed: 1})
	a := n.hosts[0]
	a.ctr("images", "import", img.dockerArchive(t, n.dir))
	start := time.Now()
	a.run("announce", short)
	took := time.Since(start)
	size := float64(img.bytes())
	optimum := time.Duration(size * 8 / 100e6 * float64(time.Second))
	t.Logf("%.1f MB to 3 hosts over 100 Mbit/s in %v: one copy over one link takes %v", size/1e6, took.Round(time.Millisecond), optimum.Round(time.Millisecond))
	for _, h := range n.hosts {
		sent := h.metric("seeder_wire_sent_bytes_total")
		t.Logf("%s sent %.1f MB, %.2f copies", h.name, sent/1e6, sent/size)
		if h == a && sent > 1.6*size {
			t.Errorf("the announcer sent %.2f copies", sent/size)
		}
		if h != a && sent < size/10 {
			t.Errorf("%s sent only %.2f copies while it was fetching", h.name, sent/size)
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
	n := cluster(t, newest, 2, "20mbit")
	const layers, size = 4, 3 << 20
	var tars [][]byte
	for i := range uint64(layers) {
		tars = append(tars, tarOf(t, map[string][]byte{fmt.Sprintf("data/%d", i): noise(i, size)}))
	}
	a, b := n.hosts[0], n.hosts[1]
	a.ctr("images", "import", packImage(t, short, false, tars...).dockerArchive(t, n.dir))
	a.run("announce", "--detach", short)
	eventually(t, 60*time.Second, "the first layer is unpacked", func() error {
		if s := b.ctr("snapshots", "ls"); !strings.Contains(s, "sha256:") {
			return errors.New(s)
		}
		return nil
	})
	arrived := b.metric(`seeder_chunk_bytes_total{source="peer"}`)
	t.Logf("%.1f of %.1f MB had arrived when the first of %d layers was seen unpacked", arrived/1e6, layers*size/1e6, layers)
	if arrived > 3*size {
		t.Errorf("%.0f bytes had arrived, want at most three layers of %d", arrived, size)
	}
	a.run("wait", "--timeout", "1m")
}

// TestContinuesAfterKill: what was verified before a kill -9 is not fetched again.
func TestContinuesAfterKill(t *testing.T) {
	n := cluster(t, newest, 2, "40mbit")
	const size = 24 << 20
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", random: size, seed: 1})
	n.hosts[0].run("announce", "--detach", short)
	h := n.hosts[1]
	var before float64
	eventually(t, 30*time.Second, "a third has arrived", func() error {
		if before = h.metric(`seeder_chunk_bytes_total{source="peer"}`); before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	h.seeder.stop(t, syscall.SIGKILL)
	h.startSeeder()
	h.ready("hello")
	kept, fetched := h.metric(`seeder_chunk_bytes_total{source="local"}`), h.metric(`seeder_chunk_bytes_total{source="peer"}`)
	received := h.metric("seeder_wire_received_bytes_total")
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
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	for _, gz := range []bool{false, true} {
		spec := imageSpec{ref: fmt.Sprintf("frames:gzip-%v", gz), says: "hello", payload: 16 << 20, gzip: gz, seed: 10}
		img := newImage(t, spec)
		before, compressed := b.metric("seeder_wire_received_bytes_total"), a.metric("seeder_chunks_compressed_total")
		a.ctr("images", "import", img.dockerArchive(t, n.dir))
		a.run("announce", spec.ref)
		wire, size := b.metric("seeder_wire_received_bytes_total")-before, float64(img.bytes())
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
		for _, b := range img.blobs() {
			chunks += chunk.Chunks(int64(len(b)), chunk.SizeFor(int64(len(b))))
		}
		compressed = a.metric("seeder_chunks_compressed_total") - compressed
		t.Logf("gzip %v: %.0f of %d chunks were compressed", gz, compressed, chunks)
		if !gz && compressed < 16<<20/chunk.MinBytes || compressed > float64(chunks) {
			t.Errorf("%.0f of %d chunks were compressed", compressed, chunks)
		}
	}
	late := n.addHost(newest) // has the frames from both
	late.startContainerd()
	late.startSeeder()
	a.awaitMembers(3)
	a.run("wait", "--timeout", "1m")
	for _, h := range []*host{b, late} {
		if got := h.metric("seeder_chunks_compressed_total"); got > 0 {
			t.Errorf("%s compressed %.0f chunks that came as frames", h.name, got)
		}
	}
}

// TestStorageOnlyNode: a node on the embedded store is a member like others; it
// holds and seeds.
func TestStorageOnlyNode(t *testing.T) {
	n := cluster(t, newest, 2, "")
	archive := n.addHost(newest)
	archive.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	n.hosts[0].awaitMembers(3)
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	n.hosts[1].ready("hello")
	archive.inState(archive, "ready", "")

	// Everybody else is gone: the archive alone gives the image to a new host.
	n.hosts[0].seeder.stop(t, syscall.SIGTERM)
	n.hosts[1].seeder.stop(t, syscall.SIGTERM)
	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder("SEEDER_GOSSIP_JOIN=" + archive.address)
	late.ready("hello")

	// And it may announce: an archive file goes into its own store.
	own := imageSpec{ref: short, says: "from the archive", payload: 1 << 20, seed: 2}
	archive.run("announce", "--from", newImage(t, own).dockerArchive(t, n.dir))
	late.ready(own.says)
}

// TestLinksAreShaped: the harness's links have the rate that they are said to
// have, in both directions.
func TestLinksAreShaped(t *testing.T) {
	n := newNetwork(t, "40mbit")
	a, b := n.addHost(newest), n.addHost(newest)
	const size = 4 << 20
	for _, way := range [][2]*host{{a, b}, {b, a}} {
		rate := size * 8 / way[0].send(way[1], size).Seconds() / 1e6
		t.Logf("%s to %s: %.1f Mbit/s", way[0].name, way[1].name, rate)
		if rate > 44 || rate < 30 {
			t.Errorf("%.1f Mbit/s, want 40", rate)
		}
	}
}

// TestPacketLoss: with 2 % of all packets lost on every link the image arrives,
// and nobody is taken for dead.
func TestPacketLoss(t *testing.T) {
	n := cluster(t, newest, 3, "100mbit")
	for _, h := range n.hosts {
		h.drop(2)
	}
	a := n.hosts[0]
	img := newImage(t, imageSpec{ref: short, says: "hello", random: 16 << 20, seed: 1})
	a.ctr("images", "import", img.dockerArchive(t, n.dir))
	start := time.Now()
	a.run("announce", short)
	t.Logf("%.1f MB to 2 hosts over 100 Mbit/s with 2 %% loss in %v", float64(img.bytes())/1e6, time.Since(start).Round(time.Millisecond))
	for _, h := range n.hosts {
		h.ready("hello")
		h.awaitMembers(3)
	}
}

// TestGossipUnderBulk: while bulk data fills every link, no member is taken for
// dead and an announcement still gets through.
func TestGossipUnderBulk(t *testing.T) {
	n := cluster(t, newest, 3, "20mbit")
	a, b := n.hosts[0], n.hosts[1]
	a.importImage(imageSpec{ref: "bulk:latest", says: "hello", random: 24 << 20, seed: 1}) // 10 s on the link
	a.run("announce", "--detach", "bulk:latest")
	eventually(t, 20*time.Second, "the link is busy", func() error {
		if got := b.metric("seeder_wire_received_bytes_total"); got < 1<<20 {
			return fmt.Errorf("%.0f bytes", got)
		}
		return nil
	})
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 10, seed: 2})
	start := time.Now()
	a.run("announce", "--detach", short)
	eventually(t, 10*time.Second, "the other hosts know of the small image", func() error {
		_, err := b.image(short)
		return err
	})
	t.Logf("known elsewhere after %v", time.Since(start).Round(time.Millisecond))
	for ended := false; !ended; {
		for _, h := range n.hosts {
			var out report.Members
			if err := h.try(&out, "members"); err != nil {
				t.Fatal(err)
			}
			for _, m := range out.Members {
				if m.State != "alive" {
					t.Fatalf("%s says that %s is %s", h.name, m.Name, m.State)
				}
			}
		}
		row, err := a.image("bulk:latest")
		if err != nil {
			t.Fatal(err)
		}
		ended = row.Ready == row.Total
	}
	b.ready("hello")
}
