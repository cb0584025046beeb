package test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/p2p"
)

const (
	short = "k3s-dashboard:latest"
	full  = "docker.io/library/k3s-dashboard:latest"
)

// cluster is hosts with containerd and seeder running, which know each other.
func cluster(t *testing.T, version string, hosts int, rate string) *network {
	t.Helper()
	n := newNetwork(t, rate)
	for range hosts {
		h := n.addHost(version)
		h.startContainerd()
		h.startSeeder()
	}
	n.hosts[0].awaitMembers(hosts)
	return n
}

// importImage does what people do: ctr images import on one host.
func (h *host) importImage(spec imageSpec) {
	h.t.Helper()
	h.ctr("images", "import", writeImage(h.t, h.net.dir, spec))
}

// ready waits until the host's own CRI answers for ref with an image that is
// complete, unpacked and pinned, and a container from it prints says.
func (h *host) ready(ref, says string) {
	h.t.Helper()
	eventually(h.t, 60*time.Second, ref+" is ready on "+h.name, func() error {
		cells, err := h.states(short)
		if err != nil {
			return err
		}
		if c := cells[h.name]; c.State != p2p.Ready {
			return fmt.Errorf("%s: %s", c.State, c.Reason)
		}
		img, err := h.imageStatus(ref)
		if err != nil || img == nil {
			return fmt.Errorf("CRI says %v, %w", img, err)
		}
		return nil
	})
	if got := strings.TrimSpace(h.runContainer(ref)); got != says {
		h.t.Fatalf("a container from %s on %s prints %q, want %q", ref, h.name, got, says)
	}
}

// TestAnnounceEverywhere is the main job (issue point 1) on every containerd.
func TestAnnounceEverywhere(t *testing.T) {
	for version := range containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			n := cluster(t, version, 3, "")
			n.hosts[0].importImage(imageSpec{ref: short, says: "hello one", payload: 6 << 20, random: 1 << 20, seed: 1})
			out := n.hosts[0].run("announce", short)
			t.Log(out)
			for _, h := range n.hosts {
				h.ready(full, "hello one")
				list := h.ctr("images", "ls")
				if !strings.Contains(list, "docker.io/library/k3s-dashboard@sha256:") {
					t.Errorf("%s has no record by digest:\n%s", h.name, list)
				}
				if !strings.Contains(list, "io.cri-containerd.pinned=pinned") {
					t.Errorf("%s has not pinned the image:\n%s", h.name, list)
				}
				if leases := h.ctr("leases", "ls", "-q"); strings.Contains(leases, "seeder") {
					t.Errorf("%s has leases left: %s", h.name, leases)
				}
			}
			// A host announces what it received, and a new build of its own.
			n.hosts[2].run("announce", short)
			n.hosts[2].importImage(imageSpec{ref: short, says: "hello two", payload: 6 << 20, random: 2 << 20, seed: 2})
			n.hosts[2].run("announce", short)
			for _, h := range n.hosts {
				h.ready(full, "hello two")
			}
		})
	}
}

// TestLateDownAndLost: a host that joins later, was down, or lost the image gets
// it without a command (point 3).
func TestLateDownAndLost(t *testing.T) {
	n := cluster(t, newest, 2, "")
	down := n.hosts[1]
	down.seeder.stop(t, 15)
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)

	down.startSeeder()
	down.ready(full, "hello")

	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder()
	late.ready(full, "hello")

	late.ctr("images", "rm", full)
	late.ready(full, "hello")

	for _, h := range n.hosts { // the catalog survives a restart of all at once
		h.seeder.stop(t, 9)
	}
	late.ctr("images", "rm", "--sync", full)
	for _, h := range n.hosts {
		h.startSeeder()
	}
	for _, h := range n.hosts {
		h.ready(full, "hello")
	}
}

// TestContinuesAfterKill: what was verified before a kill -9 is not fetched again
// (point 4).
func TestContinuesAfterKill(t *testing.T) {
	n := cluster(t, newest, 2, "40mbit")
	const size = 24 << 20
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", random: size, seed: 1})
	n.hosts[0].run("announce", "--detach", short)
	h := n.hosts[1]
	var before float64
	eventually(t, 30*time.Second, "a third has arrived", func() error {
		if before = h.metric("seeder_chunk_bytes_total"); before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	h.seeder.stop(t, 9)
	h.startSeeder()
	h.ready(full, "hello")
	received := h.metric("seeder_wire_received_bytes_total")
	t.Logf("before the kill %.1f MB of chunks, after it %.1f MB on the wire, of %.1f MB", before/1e6, received/1e6, size/1e6)
	if received > size-before+4<<20 {
		t.Errorf("%.0f bytes came after the kill: what was verified before was fetched again", received)
	}
}

// TestGzipLayersTravelAsTheyAre: a gzip layer is not compressed again, and a
// plain one shrinks on the way (point 4).
func TestFramesOnTheWire(t *testing.T) {
	n := cluster(t, newest, 2, "")
	size := map[bool]float64{}
	for i, gz := range []bool{false, true} {
		before := n.hosts[1].metric("seeder_wire_received_bytes_total")
		ref := fmt.Sprintf("frames:%d", i)
		n.hosts[0].importImage(imageSpec{ref: ref, says: "hello", payload: 16 << 20, gzip: gz, seed: uint64(i + 10)})
		n.hosts[0].run("announce", ref)
		size[gz] = n.hosts[1].metric("seeder_wire_received_bytes_total") - before
	}
	t.Logf("16 MiB of text: plain layers %.1f MB on the wire, gzip layers %.1f MB", size[false]/1e6, size[true]/1e6)
	if size[false] > 12e6 {
		t.Errorf("plain layers took %.0f bytes on the wire: they were not compressed", size[false])
	}
}

// TestStorageOnlyNode: a node on the embedded store holds and seeds (point 6).
func TestStorageOnlyNode(t *testing.T) {
	n := cluster(t, newest, 2, "")
	archive := n.addHost(newest)
	archive.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	n.hosts[0].awaitMembers(3)
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 4 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	n.hosts[1].ready(full, "hello")

	// Everybody else is gone: the archive alone gives the image to a new host.
	n.hosts[0].seeder.stop(t, 15)
	n.hosts[1].seeder.stop(t, 15)
	late := n.addHost(newest)
	late.startContainerd()
	late.write("/etc/seeder/secret", secret+"\n", 0o600)
	late.seeder = late.start([]string{"SEEDER_GOSSIP_JOIN=" + archive.address}, seederBin(t), "daemon")
	late.ready(full, "hello")
}

// TestContainerdComesLater: without containerd the daemon waits and says so, and
// goes on by itself (point 8).
func TestContainerdComesLater(t *testing.T) {
	n := cluster(t, newest, 1, "")
	n.hosts[0].importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	n.hosts[0].run("announce", short)
	h := n.addHost(newest)
	h.startSeeder()
	eventually(t, 20*time.Second, "the matrix says that containerd is away", func() error {
		cells, err := n.hosts[0].states(short)
		if err != nil {
			return err
		}
		if c := cells[h.name]; c.State != p2p.Waiting || !strings.Contains(c.Reason, "containerd") {
			return fmt.Errorf("%s: %s", c.State, c.Reason)
		}
		return nil
	})
	h.startContainerd()
	h.ready(full, "hello")

	// k3s takes containerd with it whenever it restarts.
	h.containerd.stop(t, 9)
	eventually(t, 20*time.Second, "status says that containerd is away", func() error {
		var st p2p.Status
		if err := h.try(&st, "status"); err != nil || st.Containerd.OK {
			return fmt.Errorf("%+v %w", st.Containerd, err)
		}
		return nil
	})
	h.startContainerd()
	h.ctr("images", "rm", full)
	h.ready(full, "hello")
}

// TestWrongSecret: the message says that the secrets differ (point 8).
func TestWrongSecret(t *testing.T) {
	n := newNetwork(t, "")
	a, b := n.addHost(newest), n.addHost(newest)
	a.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	b.write("/etc/seeder/secret", "quite another secret than that one\n", 0o600)
	b.startSeederRaw("SEEDER_CONTAINERD_ADDRESS=embedded")
	eventually(t, 20*time.Second, "the log says that the secrets differ", func() error {
		if !strings.Contains(b.seeder.log.String(), "secrets differ") {
			return fmt.Errorf("log: %s", b.seeder.log.tail(10))
		}
		return nil
	})
	a.awaitMembers(1)
}

// TestBadAnnounce: what cannot be announced is refused with what is near or
// lacks, and leaves nothing (point 8).
func TestBadAnnounce(t *testing.T) {
	n := cluster(t, newest, 1, "")
	h := n.hosts[0]
	h.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	if err := h.try(nil, "announce", "k3s-dashbord:latest"); err == nil || !strings.Contains(err.Error(), "k3s-dashboard:latest") {
		t.Errorf("unknown reference: %v, want the nearest named", err)
	}
	var layer string
	for line := range strings.Lines(h.ctr("content", "ls")) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(line, "MB") || strings.Contains(line, "MiB") {
			layer = f[0]
		}
	}
	h.ctr("content", "rm", layer)
	err := h.try(nil, "announce", short)
	if err == nil || !strings.Contains(err.Error(), layer) || !strings.Contains(err.Error(), "discard_unpacked_layers") {
		t.Errorf("layer %s missing: %v, want it named", layer, err)
	}
	junk := filepath.Join(n.dir, "junk.tar")
	run(t, exec.Command("sh", "-c", "head -c 100000 /dev/urandom > "+junk))
	if err := h.try(nil, "announce", "--from", junk, "junk:latest"); err == nil || !strings.Contains(err.Error(), "docker-archive or OCI-layout") {
		t.Errorf("not an archive: %v", err)
	}
	var images p2p.Images
	if err := h.try(&images, "images"); err != nil || len(images.Images) != 0 {
		t.Errorf("announced in spite of errors: %+v %v", images, err)
	}
}

// TestAnnounceArchive: announce --from FILE brings the image into containerd and
// to every host (point 7).
func TestAnnounceArchive(t *testing.T) {
	n := cluster(t, newest, 2, "")
	file := writeImage(t, n.dir, imageSpec{ref: short, says: "from a file", payload: 2 << 20, seed: 1})
	n.hosts[0].run("announce", "--from", file)
	for _, h := range n.hosts {
		h.ready(full, "from a file")
	}
}
