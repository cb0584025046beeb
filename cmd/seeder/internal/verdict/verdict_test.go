package verdict

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"seeder/p2p/report"
)

// well is a node of three with two images, all ready.
func well() Input {
	in := Input{
		Status:  report.Status{Containerd: report.ContainerdStatus{OK: true}, Join: report.JoinStatus{OK: true}, Members: 3, Converged: true, Images: report.ImageCount{Ready: 2, Total: 2}},
		Members: []report.MemberState{{Name: "h1", State: "alive"}, {Name: "h2", State: "alive"}, {Name: "h3", State: "alive"}},
	}
	for _, ref := range []string{"a", "b"} {
		in.Images = append(in.Images, report.ImageState{Reference: ref, State: "announced", Ready: 3, Total: 3,
			Nodes: []report.NodeState{{Name: "h1", State: report.Ready}, {Name: "h2", State: report.Ready}, {Name: "h3", State: report.Ready}}})
	}
	return in
}

// TestDecide: green is only where nothing is wrong, what needs somebody comes first, and
// only what keeps this host from its work blocks it.
func TestDecide(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for _, c := range []struct {
		name   string
		change func(in *Input)
		level  Level
		first  string
		blocks int
	}{
		{"all is well", func(*Input) {}, Green, "", 0},
		{"alone with nobody to join", func(in *Input) { in.Members = in.Members[:1] }, Green, "", 0},
		{"nothing announced", func(in *Input) { in.Images = []report.ImageState{}; in.Status.Images = report.ImageCount{} }, Green, "", 0},
		{"one left", func(in *Input) { in.Members[2].State = "left" }, Green, "", 0},
		{"withdrawn", func(in *Input) { in.Images[0].State, in.Images[0].Ready = "withdrawn", 0 }, Green, "", 0},
		{"one died", func(in *Input) {
			in.Members[2].State, in.Members[2].Since = "dead", at
			for i := range in.Images {
				in.Images[i].Ready, in.Images[i].Away = 2, 1
			}
		}, Amber, "h3 has not answered since 2026-01-02 03:04:05", 0},
		{"another protocol", func(in *Input) { in.Members[1].Reason = "speaks protocol 2" }, Amber, "h2 speaks protocol 2", 0},
		{"another secret", func(in *Input) {
			in.Members = in.Members[:1]
			in.Status.Join = report.JoinStatus{Refused: true, Reason: "join 10.0.0.2: the secrets differ", Since: at}
		}, Red, "this host cannot join the cluster: join 10.0.0.2: the secrets differ (since 2026-01-02 03:04:05)", 1},
		{"nobody to be joined answers", func(in *Input) {
			in.Members = in.Members[:1]
			in.Status.Join = report.JoinStatus{Reason: "connection refused"}
		}, Amber, "this host is alone and cannot join the others: connection refused", 0},
		{"containerd is away", func(in *Input) {
			in.Status.Containerd = report.ContainerdStatus{Reason: "connection refused", Since: at}
		}, Red,
			"this host waits for containerd: connection refused (since 2026-01-02 03:04:05)", 1},
		{"containerd was not asked yet", func(in *Input) { in.Status.Containerd = report.ContainerdStatus{} }, Amber, "containerd has not answered yet", 1},
		{"on its way", func(in *Input) { in.Images[1].Ready = 1 }, Amber, "b is ready on 1 of 3 nodes", 0},
		{"failed elsewhere", func(in *Input) {
			in.Images[1].Ready = 2
			in.Images[1].Nodes[2] = report.NodeState{Name: "h3", State: report.Failed, Reason: "no space left on device"}
			in.Members[1].State = "dead"
		}, Red, "b failed on h3: no space left on device", 0},
		{"failed here, the others not looked at", func(in *Input) {
			in.Images, in.Status.Images = nil, report.ImageCount{Ready: 0, Failed: 1, Total: 2}
		}, Red, "1 of 2 images failed on this host", 0},
		{"behind here, the others not looked at", func(in *Input) { in.Images, in.Status.Images.Ready = nil, 1 }, Amber, "1 of 2 images are not ready on this host yet", 0},
		{"the kubelet refuses it", func(in *Input) { in.Images[0].Nodes[1].Blocked = "the kubelet refuses it: rm X" }, Amber, "a is ready on h2, but the kubelet refuses it: rm X", 0},
		{"nobody can be asked", func(in *Input) { in.Images, in.Err = nil, errors.New("stopping") }, Red, "the members cannot be asked: stopping", 0},
	} {
		in := well()
		c.change(&in)
		v := Decide(in)
		first := ""
		if len(v.Findings) > 0 {
			first = v.Findings[0].String()
		}
		if v.Level != c.level || first != c.first || len(v.Blocking()) != c.blocks {
			t.Errorf("%s: %s, %q, %d blocking; want %s, %q, %d", c.name, v.Level, first, len(v.Blocking()), c.level, c.first, c.blocks)
		}
		if !slices.IsSortedFunc(v.Findings, func(a, b Finding) int { return b.Level.Value() - a.Level.Value() }) {
			t.Errorf("%s: the worst is not first: %+v", c.name, v.Findings)
		}
	}
}

// TestDecideIsBounded: thousands of images behind are a few findings.
func TestDecideIsBounded(t *testing.T) {
	t.Parallel()
	in := well()
	for i := range 5000 {
		in.Images = append(in.Images, report.ImageState{Reference: fmt.Sprint(i), State: "announced", Total: 1})
	}
	if v := Decide(in); len(v.Findings) != maxImages || v.Findings[maxImages-1].Text != "4981 more images are not ready everywhere" {
		t.Errorf("%d findings, the last %+v", len(v.Findings), v.Findings[len(v.Findings)-1])
	}
}
