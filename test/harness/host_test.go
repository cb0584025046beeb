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
