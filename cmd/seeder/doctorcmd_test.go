package main

import (
	"encoding/json"
	"os"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/doctor"
)

// TestDoctorWhereAllIsWell: a lone node with its own store has nothing wrong, and
// doctor says so for people and for programs.
func TestDoctorWhereAllIsWell(t *testing.T) {
	if os.Getenv("KUBECONFIG") != "" {
		t.Setenv("KUBECONFIG", "")
	}
	t.Setenv("HOME", t.TempDir())
	_, socket := startDaemon(t)
	code, out, errs := seeder(t.Context(), socket, "doctor")
	if code != cli.ExitDone || errs != "" {
		t.Errorf("exit code %d, %s\n%s", code, errs, out)
	}
	clitest.WantAll(t, out, "ok       daemon", "ok       disk", "skipped  containerd", "containerd.address is embedded", "this node is alone")
	code, out, _ = seeder(t.Context(), socket, "doctor", "-o", "json")
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != cli.ExitDone || !r.OK {
		t.Fatalf("%d %v: %s", code, err, out)
	}
	names := map[string]bool{}
	for _, f := range r.Checks {
		names[f.Name] = true
		if f.State != doctor.StateOK && f.State != doctor.StateSkipped && f.State != doctor.StateWarning {
			t.Errorf("%+v", f)
		}
	}
	for _, n := range []string{"config", "daemon", "ports", "secret", "join", "containerd", "namespace", "cri", "layers", "disk", "members", "pods"} {
		if !names[n] {
			t.Errorf("nothing of %s", n)
		}
	}
}
