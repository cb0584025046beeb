package test

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
)

// TestBehindItsBack: what others do to the images of a host is noticed and fixed
// without a command, on the host that announced them too.
func TestBehindItsBack(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a, b := n.hosts[0], n.hosts[1]
	img := newImage(t, imageSpec{ref: short, says: "hello", payload: 1 << 20, random: 1 << 20, seed: 1})
	a.ctr("images", "import", img.dockerArchive(t, n.dir))
	a.run("announce", short)
	for _, h := range n.hosts {
		h.ready("hello")
	}
	for _, h := range []*host{a, b} {
		for _, tc := range []struct {
			name string
			do   func()
		}{
			{"the image is removed", func() { h.ctr("images", "rm", "--sync", full) }},
			{"all its names are removed", func() { h.ctr(append([]string{"images", "rm", "--sync"}, h.names()...)...) }},
			{"a layer is deleted under the record", func() { h.ctr("content", "rm", digest.FromBytes(img.layers[1]).String()) }},
			{"all its content is deleted", func() {
				for d := range img.blobs() {
					h.ctrCmd("content", "rm", d.String()).Run() // docker-archive: the manifest is another one
				}
			}},
			{"the topmost snapshot is removed", func() { h.ctr("snapshots", "rm", h.topSnapshot()) }},
			{"the namespace is emptied", h.emptyNamespace},
			{"the layers are discarded", func() { h.ctr("content", "prune", "references") }},
		} {
			h.broken(tc.name, tc.do)
		}
	}
	// k3s's data is thrown away while the daemon runs.
	b.containerd.stop(t, syscall.SIGKILL)
	b.sh("rm -rf " + containerdRoot + "/*")
	b.startContainerd()
	b.fixed("containerd's root was wiped")
}

// broken does harm and waits until it is fixed.
func (h *host) broken(what string, do func()) {
	h.t.Helper()
	do()
	h.fixed(what)
}

// fixed waits until the image is whole, unpacked and known to CRI again.
func (h *host) fixed(after string) {
	h.t.Helper()
	begun := time.Now()
	eventually(h.t, 60*time.Second, "fixed on "+h.name+" after "+after, func() error {
		out, err := h.ctrCmd("images", "check", "name=="+full).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "complete") || !strings.Contains(string(out), "true") {
			return fmt.Errorf("%s %w", out, errors.Join(err))
		}
		if img, err := h.imageStatus(full); err != nil || img == nil {
			return fmt.Errorf("CRI says %v, %w", img, err)
		}
		cmd := h.ctrCmd("run", "--rm", full, fmt.Sprint("c", time.Now().UnixNano()))
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != "hello" {
			return fmt.Errorf("a container prints %q, %w", out, errors.Join(err))
		}
		return nil
	})
	h.t.Logf("%s: fixed %v after %s", h.name, time.Since(begun).Round(10*time.Millisecond), after)
	h.ready("hello")
	h.named()
	h.wantLeases() // an import holds one until it is done, and another one may have begun since
}

// topSnapshot is one that no other is made from.
func (h *host) topSnapshot() string {
	h.t.Helper()
	keys := map[string]bool{}
	parents := map[string]bool{}
	for line := range strings.Lines(h.ctr("snapshots", "ls")) {
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
	h.t.Fatalf("no snapshot on %s", h.name)
	return ""
}

// emptyNamespace removes whatever a namespace holds.
func (h *host) emptyNamespace() {
	h.t.Helper()
	h.ctr(append([]string{"images", "rm"}, h.names()...)...)
	for line := range strings.Lines(h.ctr("leases", "ls", "-q")) {
		h.ctrCmd("leases", "rm", strings.TrimSpace(line)).Run()
	}
	h.collect()
	for line := range strings.Lines(h.ctr("content", "ls", "-q")) {
		h.ctrCmd("content", "rm", strings.TrimSpace(line)).Run()
	}
}

// TestRepointed: a record that somebody re-points elsewhere than on the host that
// announced it is left alone, with the reason and what to do.
func TestRepointed(t *testing.T) {
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	a.run("announce", short)
	b.importImage(imageSpec{ref: "mine:v1", says: "mine", payload: 1 << 20, seed: 2})
	b.ctr("images", "tag", "--force", "docker.io/library/mine:v1", full)
	a.inState(b, report.Excluded, "on this host somebody has since put "+b.target("docker.io/library/mine:v1").String())
	if got := b.runContainer(full); got != "mine" {
		t.Errorf("the record was put back: a container prints %q", got)
	}
	b.ctr("images", "rm", full)
	b.becomes("hello")
}

// TestImportWhileFetching: the same image is imported by hand while it is on its
// way; both end well.
func TestImportWhileFetching(t *testing.T) {
	n := cluster(t, newest, 2, "50mbit")
	a, b := n.hosts[0], n.hosts[1]
	archive := newImage(t, imageSpec{ref: short, says: "hello", random: 24 << 20, seed: 1}).dockerArchive(t, n.dir)
	a.ctr("images", "import", archive)
	a.run("announce", short, "--detach")
	eventually(t, 30*time.Second, "the fetch is under way", func() error {
		cells, err := a.states(short)
		if c := cells[b.name]; err == nil && (c.State != report.Fetching || c.DoneBytes < 4<<20) {
			err = fmt.Errorf("%s %d", c.State, c.DoneBytes)
		}
		return err
	})
	var exit *exec.ExitError
	if out, err := b.ctrCmd("images", "import", archive).CombinedOutput(); errors.As(err, &exit) {
		t.Logf("ctr images import: %v %s", err, out) // a blob that is being written is locked; ctr waits, or gives up
	}
	b.ready("hello")
	b.complete()
	b.wantLeases()
	if list := b.ctr("content", "active"); strings.Contains(list, "sha256") {
		t.Errorf("unfinished blobs are left:\n%s", list)
	}
}
