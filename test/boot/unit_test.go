package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
	for _, line := range []string{ // what docs/security.md says of it
		"CapabilityBoundingSet=", "AmbientCapabilities=", "NoNewPrivileges=yes", "UMask=0077",
		"ProtectSystem=strict", "ReadOnlyPaths=/run", "StateDirectory=seeder", "StateDirectoryMode=0700", "RuntimeDirectory=seeder",
	} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("the unit lacks %s", line)
		}
	}
	if more := regexp.MustCompile(`(?m)^(ReadWritePaths|BindPaths|LogsDirectory|CacheDirectory)=.*`).FindAllString(string(b), -1); len(more) > 0 {
		t.Errorf("the unit lets the daemon write elsewhere: %q", more)
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
