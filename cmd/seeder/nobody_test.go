package main

import (
	"encoding/json"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/p2p/report"
	"seeder/store/artifact"
)

// TestReadyOnNobody: an image that no node takes is not ready, no matter who asks: exit code
// 3 with the reason, in JSON, too.
func TestReadyOnNobody(t *testing.T) {
	t.Parallel()
	nobody := controltest.Row(1, report.Excluded, report.Excluded)
	for i := range nobody.Images[0].Nodes {
		nobody.Images[0].Nodes[i].Reason = artifact.OtherPlatform + "linux/arm64, this host runs linux/amd64"
	}
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{nobody}}
	socket := controltest.Serve(t, f)
	for _, args := range [][]string{{"announce", "app:v1", "--from", "containerd"}, {"wait", "app:v1"}, {"wait"}} {
		code, out, errs := seeder(t.Context(), socket, args...)
		if code != cli.ExitNotConverged || strings.Contains(out, "ready on 0 of 0 nodes (") {
			t.Errorf("%v: exit code %d: %s%s", args, code, out, errs)
		}
		clitest.WantAll(t, errs, "app:v1 is announced as version 1, but no node takes it: 2 excluded: the image is for linux/arm64", "seeder announce app:v1 --any-platform")
		code, out, _ = seeder(t.Context(), socket, append(args, "-o", "json")...)
		var last control.Event
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if code != cli.ExitNotConverged || last.Event != control.EventError || last.Code != cli.ExitNotConverged || !strings.Contains(last.Error, "no node takes it") {
			t.Errorf("%v: exit code %d, the last event is %+v", args, code, last)
		}
	}
	code, out, errs := seeder(t.Context(), socket, "announce", "app:v1", "--on", "zone=nowhere", "--yes", "--from", "containerd")
	if code != cli.ExitDone || strings.Contains(out, "ready on 0 of 0") {
		t.Errorf("--yes: exit code %d: %s%s", code, out, errs)
	}
	clitest.WantAll(t, out, "it is announced for nodes that get the labels later")
	if n := len(f.Orders); n == 0 || f.Orders[n-1].AnyPlatform {
		t.Errorf("ordered %+v", f.Orders)
	}
	seeder(t.Context(), socket, "announce", "app:v1", "--any-platform", "--detach", "--from", "containerd")
	if n := len(f.Orders); !f.Orders[n-1].AnyPlatform {
		t.Errorf("--any-platform ordered %+v", f.Orders[n-1])
	}
}
