package hosts

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestStranger: a client that was written from docs/protocol.md, in another language,
// gets an announced image from a node, and nothing with another secret.
func TestStranger(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 1, "")
	h := n.Hosts[0]
	h.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 3 << 20, Random: 1 << 20, Seed: 1})
	h.Run("announce", harness.ShortName)
	script, err := filepath.Abs("stranger.py")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := func(secretFile string) []string {
		return []string{"/usr/bin/python3", script, secretFile, h.Address + ":7951", harness.FullName}
	}
	out := harness.Run(t, h.In(ctx, client("/etc/seeder/secret")...))
	if !strings.Contains(out, "is ready there; 5 blobs of ") || !strings.Contains(out, "are as announced") {
		t.Errorf("it says:\n%s", out)
	}
	h.Write("/etc/seeder/other", "another secret than that of the hosts\n", 0o600)
	if out, err := h.In(ctx, client("/etc/seeder/other")...).CombinedOutput(); err == nil || !strings.Contains(string(out), "CERTIFICATE_VERIFY_FAILED") {
		t.Errorf("with another secret: %v\n%s", err, out)
	}
}
