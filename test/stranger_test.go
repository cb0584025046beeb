package test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStranger: a client that was written from docs/protocol.md, in another language,
// gets an announced image from a node, and nothing with another secret.
func TestStranger(t *testing.T) {
	n := cluster(t, newest, 1, "")
	h := n.hosts[0]
	h.importImage(imageSpec{ref: short, says: "hello", payload: 3 << 20, random: 1 << 20, seed: 1})
	h.run("announce", short)
	script, err := filepath.Abs("stranger.py")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := func(secretFile string) []string {
		return []string{"/usr/bin/python3", script, secretFile, h.address + ":7951", full}
	}
	out := run(t, h.in(ctx, client("/etc/seeder/secret")...))
	if !strings.Contains(out, "is ready there; 5 blobs of ") || !strings.Contains(out, "are as announced") {
		t.Errorf("it says:\n%s", out)
	}
	h.write("/etc/seeder/other", "another secret than that of the hosts\n", 0o600)
	if out, err := h.in(ctx, client("/etc/seeder/other")...).CombinedOutput(); err == nil || !strings.Contains(string(out), "CERTIFICATE_VERIFY_FAILED") {
		t.Errorf("with another secret: %v\n%s", err, out)
	}
}
