package test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAwayIsSaid: a host that went without a word counts, on every screen, over a restart
// and until somebody forgets it; commands that wait name it and do not wait for it. So is
// said which image the kubelet of a host refuses though it is ready.
func TestAwayIsSaid(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 3, "")
	a, b, lost := n.hosts[0], n.hosts[1], n.hosts[2]
	pulling := b.path("/var/lib/kubelet/image_manager/pulling")
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
	for _, h := range n.hosts { // each has talked to each: one of which nothing is known but a packet does not count
		h.awaitMembers(3)
		h.run("images")
		h.run("members")
	}
	lost.seeder.stop(t, syscall.SIGKILL)
	for _, h := range []*host{a, b} {
		eventually(t, time.Minute, "h3 is dead on "+h.name, func() error {
			if s := h.memberState(lost); s != "dead" {
				return errors.New(s)
			}
			return nil
		})
	}
	a.importImage(imageSpec{ref: short, says: "hello", payload: 1 << 20, seed: 1})
	contains := func(what, out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s printed no %q:\n%s", what, want, out)
			}
		}
	}
	contains("announce", a.run("announce", short), "is ready on 2 of 3 nodes (1 away)", "h3 has been away since ",
		"k3s-dashboard:latest is ready on h2, but the kubelet refuses it for imagePullPolicy Never",
		"rm /var/lib/kubelet/image_manager/pulling/sha256-6ce5 && systemctl restart kubelet")
	contains("images", a.run("images"), "2/3", "unreachable", "ready, blocked", "no answer to gossip since ")
	contains("status", a.run("status"), "amber", "h3 has not answered since ", "seeder members forget h3", "2 alive, 1 away: h3 (since ")
	if err := a.try(nil, "wait", "--all", "--timeout", "2s"); exitCode(err) != 3 || !strings.Contains(err.Error(), "k3s-dashboard:latest on h3: unreachable") {
		t.Errorf("wait --all: %v", err)
	}
	if err := b.try(nil, "doctor"); exitCode(err) != 1 {
		t.Errorf("doctor beside a note of the kubelet: %v", err)
	}

	a.seeder.stop(t, syscall.SIGTERM)
	a.startSeeder()
	a.awaitMembers(2)
	eventually(t, time.Minute, "h3 counts after a restart", func() error {
		if out := a.run("images", short); !strings.Contains(out, "ready on 2 of 3 nodes (1 away)") {
			return errors.New(out)
		}
		return nil
	})
	if err := a.try(nil, "members", "forget", "h2"); exitCode(err) != 2 || !strings.Contains(err.Error(), "h2 is alive") {
		t.Errorf("forgetting who is there: %v", err)
	}
	if err := os.Remove(note); err != nil {
		t.Fatal(err)
	}
	contains("members forget", b.run("members", "forget", "h3"), "h3 is forgotten")
	for _, h := range []*host{a, b} {
		eventually(t, time.Minute, "h3 is forgotten, and all is green on "+h.name, func() error {
			if out := h.run("status"); !strings.Contains(out, "green") || !strings.Contains(out, "nothing is wrong") {
				return errors.New(out)
			}
			if out := h.run("wait"); out != fmt.Sprintln("1 image is ready on 2 nodes") {
				return errors.New(out)
			}
			return nil
		})
	}
}
