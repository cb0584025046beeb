package hosts

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// TestBehindItsBack: what others do to the images of a host is noticed and fixed
// without a command, on the host that announced them too.
func TestBehindItsBack(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b := n.Hosts[0], n.Hosts[1]
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Random: 1 << 20, Seed: 1})
	a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
	a.Run("announce", harness.ShortName)
	for _, h := range n.Hosts {
		h.Ready("hello")
	}
	for _, h := range []*harness.Host{a, b} {
		for _, tc := range []struct {
			name string
			do   func()
		}{
			{"the image is removed", func() { h.Ctr("images", "rm", "--sync", harness.FullName) }},
			{"all its names are removed", func() { h.Ctr(append([]string{"images", "rm", "--sync"}, names(h)...)...) }},
			{"a layer is deleted under the record", func() { h.Ctr("content", "rm", digest.FromBytes(img.Layers[1]).String()) }},
			{"all its content is deleted", func() {
				for d := range img.Blobs() {
					h.CtrCmd("content", "rm", d.String()).Run() // docker-archive: the manifest is another one
				}
			}},
			{"the topmost snapshot is removed", func() { h.Ctr("snapshots", "rm", topSnapshot(h)) }},
			{"the namespace is emptied", func() { emptyNamespace(h) }},
			{"the layers are discarded", func() { h.Ctr("content", "prune", "references") }},
		} {
			broken(h, tc.name, tc.do)
		}
	}
	// k3s's data is thrown away while the daemon runs.
	b.Containerd.Stop(t, syscall.SIGKILL)
	b.Sh("rm -rf " + containerdRoot + "/*")
	b.StartContainerd()
	fixed(b, "containerd's root was wiped")
}

// broken does harm and waits until it is fixed.
func broken(h *harness.Host, what string, do func()) {
	h.T.Helper()
	do()
	fixed(h, what)
}

// fixed waits until the image is whole, unpacked and known to CRI again.
func fixed(h *harness.Host, after string) {
	h.T.Helper()
	begun := time.Now()
	harness.Eventually(h.T, 60*time.Second, "fixed on "+h.Name+" after "+after, func() error {
		out, err := h.CtrCmd("images", "check", "name=="+harness.FullName).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "complete") || !strings.Contains(string(out), "true") {
			return fmt.Errorf("%s %w", out, errors.Join(err))
		}
		if img, err := h.ImageStatus(harness.FullName); err != nil || img == nil {
			return fmt.Errorf("CRI says %v, %w", img, err)
		}
		cmd := h.CtrCmd("run", "--rm", harness.FullName, fmt.Sprint("c", time.Now().UnixNano()))
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "hello" {
			return fmt.Errorf("a container prints %q, %w", out, errors.Join(err))
		}
		return nil
	})
	h.T.Logf("%s: fixed %v after %s", h.Name, time.Since(begun).Round(10*time.Millisecond), after)
	h.Ready("hello")
	named(h)
	wantLeases(h) // an import holds one until it is done, and another one may have begun since
}

// topSnapshot is one that no other is made from.
func topSnapshot(h *harness.Host) string {
	h.T.Helper()
	keys := map[string]bool{}
	parents := map[string]bool{}
	for line := range strings.Lines(h.Ctr("snapshots", "ls")) {
		f := strings.Fields(line)
		if len(f) > 0 && strings.HasPrefix(f[0], "sha256:") {
			keys[f[0]] = true
			if len(f) == 3 {
				parents[f[1]] = true
			}
		}
	}
	for k := range keys {
		if !parents[k] {
			return k
		}
	}
	h.T.Fatalf("no snapshot on %s", h.Name)
	return ""
}

// emptyNamespace removes whatever a namespace holds.
func emptyNamespace(h *harness.Host) {
	h.T.Helper()
	h.Ctr(append([]string{"images", "rm"}, names(h)...)...)
	for line := range strings.Lines(h.Ctr("leases", "ls", "-q")) {
		h.CtrCmd("leases", "rm", strings.TrimSpace(line)).Run()
	}
	collect(h)
	for line := range strings.Lines(h.Ctr("content", "ls", "-q")) {
		h.CtrCmd("content", "rm", strings.TrimSpace(line)).Run()
	}
}

// TestRepointed: a record that somebody re-points elsewhere than on the host that
// announced it is left alone, with the reason and what to do.
func TestRepointed(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.ImportImage(harness.ImageSpec{Ref: "mine:v1", Says: "mine", Payload: 1 << 20, Seed: 2})
	b.Ctr("images", "tag", "--force", "docker.io/library/mine:v1", harness.FullName)
	a.InState(b, report.Excluded, b.Target("docker.io/library/mine:v1").String()+" was later put under that name on this host")
	if got := b.RunContainer(harness.FullName); got != "mine" {
		t.Errorf("the record was put back: a container prints %q", got)
	}
	b.Ctr("images", "rm", harness.FullName)
	becomes(b, "hello")
}

// TestImportWhileFetching: the same image is imported by hand while it is on its
// way; both end well.
func TestImportWhileFetching(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "50mbit")
	a, b := n.Hosts[0], n.Hosts[1]
	archive := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 24 << 20, Seed: 1}).DockerArchive(t, n.Dir)
	a.Ctr("images", "import", archive)
	a.Run("announce", harness.ShortName, "--detach")
	harness.Eventually(t, 30*time.Second, "the fetch is under way", func() error {
		cells, err := a.States(harness.ShortName)
		if c := cells[b.Name]; err == nil && (c.State != report.Fetching || c.DoneBytes < 4<<20) {
			err = fmt.Errorf("%s %d", c.State, c.DoneBytes)
		}
		return err
	})
	var exit *exec.ExitError
	if out, err := b.CtrCmd("images", "import", archive).CombinedOutput(); errors.As(err, &exit) {
		t.Logf("ctr images import: %v %s", err, out) // a blob that is being written is locked; ctr waits, or gives up
	}
	b.Ready("hello")
	complete(b)
	wantLeases(b)
	if list := b.Ctr("content", "active"); strings.Contains(list, "sha256") {
		t.Errorf("unfinished blobs are left:\n%s", list)
	}
}
