package hosts

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestAwayIsSaid: a host that went without a word counts, on every screen, over a restart
// and until somebody forgets it; commands that wait name it and do not wait for it. So is
// said which image the kubelet of a host refuses though it is ready.
func TestAwayIsSaid(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a, b, lost := n.Hosts[0], n.Hosts[1], n.Hosts[2]
	pulling := b.Path("/var/lib/kubelet/image_manager/pulling")
	if err := os.MkdirAll(pulling, 0o700); err != nil {
		t.Fatal(err)
	}
	note := pulling + "/sha256-6ce5"
	if err := os.WriteFile(note, []byte(`{"kind":"ImagePullIntent","image":"k3s-dashboard:latest"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(note, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	for _, h := range n.Hosts { // each has talked to each: one of which nothing is known but a packet does not count
		h.AwaitMembers(3)
		h.Run("images")
		h.Run("members")
	}
	lost.Seeder.Stop(t, syscall.SIGKILL)
	for _, h := range []*harness.Host{a, b} {
		harness.Eventually(t, time.Minute, "h3 is dead on "+h.Name, func() error {
			if s := h.MemberState(lost); s != "dead" {
				return errors.New(s)
			}
			return nil
		})
	}
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	contains := func(what, out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s printed no %q:\n%s", what, want, out)
			}
		}
	}
	contains("announce", a.Run("announce", harness.ShortName), "is ready on 2 of 3 nodes (1 away)", "h3 has been away since ",
		"k3s-dashboard:latest is ready on h2, but the kubelet refuses it for imagePullPolicy Never",
		"rm /var/lib/kubelet/image_manager/pulling/sha256-6ce5 && systemctl restart kubelet")
	contains("images", a.Run("images"), "2/3", "unreachable", "ready, blocked", "no answer to gossip since ")
	contains("status", a.Run("status"), "amber", "h3 has not answered since ", "seeder members forget h3", "2 alive, 1 away: h3 (since ")
	if err := a.Try(nil, "wait", "--all", "--timeout", "2s"); harness.ExitCode(err) != 3 || !strings.Contains(err.Error(), "k3s-dashboard:latest on h3: unreachable") {
		t.Errorf("wait --all: %v", err)
	}
	if err := b.Try(nil, "doctor"); harness.ExitCode(err) != 1 {
		t.Errorf("doctor beside a note of the kubelet: %v", err)
	}

	a.Seeder.Stop(t, syscall.SIGTERM)
	a.StartSeeder()
	a.AwaitMembers(2)
	harness.Eventually(t, time.Minute, "h3 counts after a restart", func() error {
		if out := a.Run("images", harness.ShortName); !strings.Contains(out, "ready on 2 of 3 nodes (1 away)") {
			return errors.New(out)
		}
		return nil
	})
	if err := a.Try(nil, "members", "forget", "h2"); harness.ExitCode(err) != 2 || !strings.Contains(err.Error(), "h2 is alive") {
		t.Errorf("forgetting who is there: %v", err)
	}
	if err := os.Remove(note); err != nil {
		t.Fatal(err)
	}
	contains("members forget", b.Run("members", "forget", "h3"), "h3 is forgotten")
	for _, h := range []*harness.Host{a, b} {
		harness.Eventually(t, time.Minute, "h3 is forgotten, and all is green on "+h.Name, func() error {
			if out := h.Run("status"); !strings.Contains(out, "green") || !strings.Contains(out, "nothing is wrong") {
				return errors.New(out)
			}
			if out := h.Run("wait"); out != fmt.Sprintln("1 image is ready on 2 nodes") {
				return errors.New(out)
			}
			return nil
		})
	}
}
