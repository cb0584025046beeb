package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"seeder/test/harness"
)

// TestUnit: systemd finds nothing wrong with the unit, and little exposed.
func TestUnit(t *testing.T) {
	harness.NeedSystemd(t)
	b, err := os.ReadFile("../../systemd/seeder.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "seeder.service") // verify wants the program to be there
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/seeder", harness.SeederBin(t))), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := harness.Run(t, exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", unit)); out != "" {
		t.Error(out)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", unit).CombinedOutput()
	if err != nil { // more than 2.0
		t.Errorf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}
