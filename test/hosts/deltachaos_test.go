package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// twoHosts are hosts with a link so slow that a delta is there sooner, whatever else this
// machine does, of which the second one has the first build, too. Its
// daemon says when it begins to rebuild a layer.
func twoHosts(t *testing.T, first *harness.Image) (a, b *harness.Host) {
	t.Helper()
	n := harness.NewNetwork(t, "5mbit")
	for range 2 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_LOG_LEVEL=debug")
	}
	n.Hosts[0].AwaitMembers(2)
	announceBuild(t, n, first)
	return n.Hosts[0], n.Hosts[1]
}

// stopMidway announces a build, and stops the daemon of b in the middle of the rebuild of its
// large layer. staged are the bytes of the layer that are on the disk of b.
func stopMidway(t *testing.T, a, b *harness.Host, build *harness.Image) (staged int64) {
	t.Helper()
	layer := build.Layers[0]
	file := b.Path(filepath.Join(dataDir, "stage", digest.FromBytes(layer).Encoded()+"*"))
	size := func() (bytes int64) {
		found, err := filepath.Glob(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			st, err := os.Stat(f)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if err == nil {
				bytes += st.Size()
			}
		}
		return bytes
	}
	a.Ctr("images", "import", build.DockerArchive(t, a.Net.Dir))
	began := make(chan int64, 1)
	b.Seeder.Log.When("rebuilding a layer from a delta", func() { began <- size() })
	a.Run("announce", "--detach", harness.ShortName)
	var before int64
	select {
	case before = <-began:
	case <-time.After(time.Minute):
		t.Fatalf("no layer was rebuilt:\n%s", b.Seeder.Log.Tail(20))
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if size() > before+2<<20 {
			b.Seeder.Freeze()
			staged = size()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of the layer are there after a minute, %d were before", size(), before)
		}
		time.Sleep(time.Millisecond) // looks again: a rebuild takes hundreds
	}
	if staged >= int64(len(layer))*3/4 || strings.Contains(b.Seeder.Log.String(), "rebuilt a layer from a delta") {
		t.Fatalf("it was not in the middle: %d bytes of %d are there", staged, len(layer))
	}
	t.Logf("stopped in the middle of a rebuild: %.1f of %.1f MB are there, %.1f MB were before it", float64(staged)/1e6, float64(len(layer))/1e6, float64(before)/1e6)
	return staged
}

// TestDeltaKilledMidway: a host that is killed in the middle of a rebuild gets the image all
// the same, and fetches nothing again of what was rebuilt.
func TestDeltaKilledMidway(t *testing.T) {
	harness.WantCache(t)
	first, second := builtTwice(t, true)
	a, b := twoHosts(t, first)
	staged := stopMidway(t, a, b, second)
	_ = syscall.Kill(b.Seeder.PID, syscall.SIGKILL)
	b.Seeder.Thaw()
	b.Seeder.Wait(t, time.Minute)
	b.StartSeeder()
	b.InState(b, report.Ready, "")
	const beside = 2 << 20 // the other layers, gossip, TLS, and a chunk that was half there
	if came := int64(b.Metric("seeder_wire_received_bytes_total")); came > int64(len(second.Layers[0]))-staged+beside {
		t.Errorf("after the kill %d bytes came, %d of %d were there", came, staged, len(second.Layers[0]))
	}
	wantSecond(t, a, b)
}

// TestDeltaOfRottenBase: where the base rots in containerd, before or in the middle of a
// rebuild, ordinary chunks come instead, and it is said why.
func TestDeltaOfRottenBase(t *testing.T) {
	harness.WantCache(t)
	for name, midway := range map[string]bool{"in the middle": true, "before": false} {
		t.Run(name, func(t *testing.T) {
			first, second := builtTwice(t, true)
			a, b := twoHosts(t, first)
			base := b.Path(filepath.Join(blobsDir, digest.FromBytes(first.Layers[2]).Encoded()))
			if midway {
				stopMidway(t, a, b, second)
				garbleEnd(t, base)
				b.Seeder.Thaw()
			} else {
				garbleEnd(t, base)
				a.Ctr("images", "import", second.DockerArchive(t, a.Net.Dir))
				a.Run("announce", harness.ShortName)
			}
			b.InState(b, report.Ready, "")
			if failed := b.Metric(`seeder_deltas_total{result="failed"}`); failed != 1 {
				t.Errorf("%.0f deltas failed, want 1:\n%s", failed, b.Seeder.Log.Tail(20))
			}
			states, err := b.States(harness.ShortName)
			if err != nil {
				t.Fatal(err)
			}
			st := states[b.Name]
			if layer := int64(len(second.Layers[0])); midway && st.RebuiltBytes <= 0 || st.RebuiltBytes >= layer {
				t.Errorf("%d bytes were rebuilt, of a layer of %d", st.RebuiltBytes, layer)
			}
			if !strings.Contains(st.NoDelta, "the base is damaged in this host's containerd") {
				t.Errorf("it is said why the layer came whole: %q", st.NoDelta)
			}
			wantSecond(t, a, b)
		})
	}
}

// garbleEnd changes bytes in the last eighth of a file, and keeps the file's time: so do disks
// that fail.
func garbleEnd(t *testing.T, file string) {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, at := make([]byte, 64), st.Size()*7/8
	if _, err := f.ReadAt(p, at); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 0x55
	}
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// wantSecond: b has the second build as a has it, and runs it.
func wantSecond(t *testing.T, a, b *harness.Host) {
	t.Helper()
	if got, want := fmt.Sprint(b.Target(harness.FullName)), fmt.Sprint(a.Target(harness.FullName)); got != want {
		t.Errorf("%s has %s, %s has %s", b.Name, got, a.Name, want)
	}
	if says := b.RunContainer(harness.FullName); says != "two" {
		t.Errorf("the container says %q", says)
	}
	if log := b.Seeder.Log.String(); strings.Contains(log, "panic") {
		t.Error(log)
	}
}
