package harness

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestContainerdVersions: each containerd is the version that the tests call it.
func TestContainerdVersions(t *testing.T) {
	NeedRoot(t) // who runs hosts has built them
	for version, dir := range Containerds {
		asked, err := askVersion(t.Context(), filepath.Join(dir, "containerd"))
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s is containerd %s", dir, asked)
		if !strings.HasPrefix(asked, version+".") {
			t.Errorf("%s is containerd %s, the tests call it %s", dir, asked, version)
		}
	}
}

// TestCores: what runs on a host runs on its cores, and what it starts does.
func TestCores(t *testing.T) {
	h := NewNetwork(t, "").AddHost(Newest)
	h.Cores = "0"
	out, err := h.In(t.Context(), "sh", "-c", "grep ^Cpus_allowed_list: /proc/self/status").CombinedOutput()
	if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != "Cpus_allowed_list: 0" {
		t.Errorf("a command of a host with core 0: %q, %v", got, err)
	}
}
