package main

import (
	"encoding/json"
	"fmt"
	"strings"
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
	for _, out := range []string{"text", "json"} {
		seeder(t.Context(), socket, "announce", "app:v1", "--from", "containerd", "--detach", "-o", out)
	}
	if asked.Load() != n {
		t.Error("the API server is asked for nobody who waits")
	}
}

// TestAnnounceTellsProgramsWhichPodsWait: more than people read, each with its fix, before the end.
func TestAnnounceTellsProgramsWhichPodsWait(t *testing.T) {
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Ready)}}
	socket := controltest.Serve(t, f)
	events := func(pods ...string) (out []control.Event) {
		kubeconfig, _ := podstest.Server(t, pods...)
		t.Setenv("KUBECONFIG", kubeconfig)
		code, text, errs := seeder(t.Context(), socket, "announce", "app:v1", "--from", "containerd", "-o", "json")
		for line := range strings.Lines(text) {
			var e control.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			out = append(out, e)
		}
		if code != cli.ExitDone || len(out) < 2 || out[len(out)-1].Event != control.EventDone {
			t.Fatalf("exit code %d: %s%s", code, text, errs)
		}
		return out
	}
	var list []string
	for i := range 7 {
		list = append(list, podstest.Pod(fmt.Sprint("web-", i), "n1", "app:v1", "Never", "ErrImageNeverPull"))
	}
	list = append(list, podstest.Pod("db-1", "", "db:v2", "IfNotPresent", "ImagePullBackOff"))
	want := len(list)
	all := events(append(list, list...)...) // it reads the first page, half of them
	e := all[len(all)-2]
	if e.Event != control.EventPods || len(e.Pods) != want {
		t.Fatalf("%+v before the end", e)
	}
	for _, p := range e.Pods {
		switch {
		case p.Namespace != "web" || p.Reason == "":
			t.Errorf("%+v", p)
		case p.Image == "app:v1" && (p.Node != "n1" || p.Detail != "is announced, and ready there" || !strings.Contains(p.Fix, "the kubelet looks again")):
			t.Errorf("%+v", p)
		case p.Image == "db:v2" && (p.Node != "" || p.Detail != "is not announced" || !strings.Contains(p.Fix, "seeder announce db:v2")):
			t.Errorf("%+v", p)
		}
	}
	for _, e := range events() {
		if e.Event == control.EventPods {
			t.Errorf("no pod waits: %+v", e)
		}
	}
}
