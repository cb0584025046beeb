package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCompatibility: the table has a row that passed for each kubelet with each containerd
// that the tests build, by their minor versions. `make kubelet` writes it.
func TestCompatibility(t *testing.T) {
	page, err := os.ReadFile("compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	minors := func(program string) []string {
		t.Helper()
		dirs, err := filepath.Glob("../test/tools/" + program + "-*")
		if err != nil || len(dirs) == 0 {
			t.Fatalf("no module of %s: %v", program, err)
		}
		for i, d := range dirs {
			dirs[i] = strings.TrimPrefix(filepath.Base(d), program+"-")
		}
		return dirs
	}
	for _, kubelet := range minors("kubelet") {
		for _, containerd := range minors("containerd") {
			row := regexp.MustCompile(`(?m)^\| v` + regexp.QuoteMeta(kubelet) + `\.\d+ \| v` + regexp.QuoteMeta(containerd) + `\.\d+ \| \d+ \| passed \|$`)
			if !row.Match(page) {
				t.Errorf("no row of kubelet %s with containerd %s passed: run `make kubelet`", kubelet, containerd)
			}
		}
	}
}
