package hosts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// upgradeFrom is what is upgraded from until there is a release: a commit that speaks the
// same protocol. It moves forward where the protocol or data_dir changes before v0.1.0.
const upgradeFrom = "e5c18ab"

// earlier is a commit to upgrade from and its name: the newest tag that is not this very
// commit, or upgradeFrom.
func earlier(ctx context.Context) (commit string, err error) {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", "../.."}, args...)...).Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	commit, err = git("describe", "--tags", "--match", "v*", "--abbrev=0", "HEAD^")
	if err != nil {
		commit = upgradeFrom
	}
	_, err = git("cat-file", "-e", commit+"^{commit}")
	return commit, err
}

// buildAt builds the seeder of a commit, in a directory of the test, and returns the program.
func buildAt(t *testing.T, commit string) string {
	t.Helper()
	dir := t.TempDir()
	harness.Run(t, exec.CommandContext(t.Context(), "sh", "-ec", fmt.Sprintf("git -C ../.. archive %s | tar -x -C %s", commit, dir)))
	program := filepath.Join(dir, "seeder-"+commit)
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X seeder/cmd/seeder/internal/cli.release="+commit, "-o", program, "./cmd/seeder")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	harness.Run(t, build)
	return program
}

// restartAs ends the host's daemon and starts that of another program on the same data.
func restartAs(h *harness.Host, program string) {
	h.T.Helper()
	h.Seeder.Stop(h.T, syscall.SIGTERM)
	h.Program, h.Net.Program = program, program
	h.StartSeeder()
}

// TestUpgradeFromEarlier: hosts are upgraded from an earlier build one after the other, in
// the middle of a transfer too. Builds of both kinds give images to each other, nothing
// that was there is fetched again, and the earlier build takes its place back.
func TestUpgradeFromEarlier(t *testing.T) {
	harness.NeedRoot(t)
	commit, err := earlier(t.Context())
	if err != nil {
		t.Skipf("there is no earlier build to upgrade from, as in a shallow clone or without git: %v", err)
	}
	before, now := buildAt(t, commit), harness.SeederBin(t)
	n := harness.NewNetwork(t, "100mbit")
	n.Program = before
	for range 3 {
		h := n.AddHost(harness.Newest)
		h.Program = before
		h.StartContainerd()
		h.StartSeeder()
	}
	a, b, c := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	a.AwaitMembers(3)
	t.Logf("from %s to %s", strings.TrimSpace(a.Run("version")), strings.TrimSpace(harness.Run(t, exec.CommandContext(t.Context(), now, "version"))))
	spread := func(from *harness.Host, says string, seed uint64) {
		t.Helper()
		from.ImportImage(harness.ImageSpec{Ref: harness.FullName, Says: says, Random: 8 << 20, Seed: seed})
		from.Run("announce", harness.ShortName)
		for _, h := range n.Hosts {
			h.Ready(says)
		}
	}
	spread(a, "all earlier", 1)

	restartAs(b, now)
	a.AwaitMembers(3)
	b.Ready("all earlier")
	if got := b.Metric("seeder_chunk_bytes_total"); got != 0 {
		t.Errorf("%.0f bytes were fetched again after the upgrade", got)
	}
	spread(a, "from an earlier one", 2)
	spread(b, "from the new one", 3)

	const size = 24 << 20
	had := c.Metric("seeder_chunk_bytes_total")
	b.ImportImage(harness.ImageSpec{Ref: harness.FullName, Says: "in the middle", Random: size, Seed: 4})
	b.Run("announce", "--detach", harness.ShortName)
	var part float64
	harness.Eventually(t, time.Minute, "a third has arrived", func() error {
		if part = c.Metric("seeder_chunk_bytes_total") - had; part < size/3 {
			return fmt.Errorf("%.0f bytes", part)
		}
		return nil
	})
	restartAs(c, now)
	restartAs(a, now)
	for _, h := range n.Hosts {
		h.Ready("in the middle")
	}
	// The chunks of the whole image since the start: its other layers, and those that were kept.
	whole := c.Metric("seeder_chunk_bytes_total")
	if got := c.Metric("seeder_wire_received_bytes_total"); got > whole-part+4<<20 {
		t.Errorf("%.0f bytes came after the upgrade and %.0f before it, of %.0f: what was verified was fetched again", got, part, whole)
	}
	spread(c, "all new", 5)

	restartAs(c, before) // somebody takes it back
	a.AwaitMembers(3)
	c.Ready("all new")
	spread(a, "taken back", 6)
	for _, h := range n.Hosts {
		if m, err := h.States(harness.ShortName); err != nil || m[c.Name].State != report.Ready {
			t.Errorf("%s on %s: %+v, %v", c.Name, h.Name, m, err)
		}
	}
}
