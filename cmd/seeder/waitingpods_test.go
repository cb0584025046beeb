package main

import (
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/pods/podstest"
	"seeder/p2p/report"
)

// TestAnnounceSaysWhichPodsWait: at its end announce names the pods that wait, those for the
// image and those for one that nobody has announced; programs are not told.
func TestAnnounceSaysWhichPodsWait(t *testing.T) {
	var list []string
	for _, p := range [][3]string{{"web-1", "n1", "app:v1"}, {"db-1", "n2", "db:v2"}, {"a", "n1", "x:1"}, {"b", "n1", "x:1"}, {"c", "n1", "x:1"}, {"d", "n1", "x:1"}} {
		list = append(list, podstest.Pod(p[0], p[1], p[2], "Never", "ErrImageNeverPull"))
	}
	kubeconfig, asked := podstest.Server(t, list...)
	t.Setenv("KUBECONFIG", kubeconfig)
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Ready)}}
	socket := controltest.Serve(t, f)
	code, out, errs := seeder(t.Context(), socket, "announce", "app:v1", "--from", "containerd")
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	clitest.WantAll(t, out, "is ready on 2 of 2 nodes", "pod web/web-1 on n1 waits for app:v1 (ErrImageNeverPull): it is announced, and ready there; wait: the kubelet looks again",
		"pod web/db-1 on n2 waits for db:v2 (ErrImageNeverPull): it is not announced; seeder announce db:v2  # on a host that has it")
	n := asked.Load()
	for _, args := range [][]string{{"-o", "json"}, {"--detach"}} {
		seeder(t.Context(), socket, append([]string{"announce", "app:v1", "--from", "containerd"}, args...)...)
	}
	if asked.Load() != n {
		t.Error("the API server is asked for a program, or for nobody who waits")
	}
}
