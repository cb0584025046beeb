package doctor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/kubelet"
	"seeder/cmd/seeder/internal/pods"
	"seeder/cmd/seeder/internal/pods/podstest"
	"seeder/p2p/report"
)

// TestDoctorAsksTheCluster: kubectl itself, over TLS, with the kubeconfig that is
// named, finds the pods that wait for an image, page by page, and no others.
func TestDoctorAsksTheCluster(t *testing.T) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is missing; `make deps` installs it")
	}
	t.Setenv("HOME", t.TempDir()) // kubectl caches what it discovers there
	kubeconfig, asked := podstest.Server(t,
		podstest.Pod("dashboard-1", "h2", "k3s-dashboard:latest", "Never", "ErrImageNeverPull"),
		podstest.Pod("other-1", "h3", "registry.example.com/me/app:v1", "IfNotPresent", "ErrImagePull"),
		podstest.Pod("back-off-1", "h3", "registry.example.com/me/app:v1", "Always", "ImagePullBackOff"),
		podstest.Pod("slow-1", "h3", "registry.example.com/me/slow:v1", "Always", "ContainerCreating"))
	e := newTestExam(t, "")
	e.kubeconfig = kubeconfig
	out := e.checkPods(t.Context())
	if len(out) != 3 || asked.Load() != 2 {
		t.Errorf("%d findings, %d questions: %+v", len(out), asked.Load(), out)
	}
	wantFinding(t, out, "pods", "web/dashboard-1", stateProblem, "ErrImageNeverPull on h2: image k3s-dashboard:latest is not on this host", "seeder announce k3s-dashboard:latest")
	wantFinding(t, out, "pods", "web/other-1", stateProblem, "ErrImagePull on h3: image registry.example.com/me/app:v1", "seeder announce registry.example.com/me/app:v1")
	wantFinding(t, out, "pods", "web/back-off-1", stateProblem, "imagePullPolicy is Always", "set imagePullPolicy: IfNotPresent")

	none, _ := podstest.Server(t)
	e.kubeconfig = none
	wantFinding(t, e.checkPods(t.Context()), "pods", "", StateOK, "none waits", "")
	b, err := os.ReadFile(none)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(none, []byte(strings.Replace(string(b), "sesame", "wrong", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, e.checkPods(t.Context()), "pods", none, StateSkipped, "the cluster does not say", "")
	e.kubeconfig = filepath.Join(e.root, "none")
	wantFinding(t, e.checkPods(t.Context()), "pods", "", StateSkipped, "cannot be read", "")
}

// TestDoctorFindsKubectl: k3s's own is taken before another, and its kubeconfig
// where no other is named.
func TestDoctorFindsKubectl(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	e := newTestExam(t, "")
	wantFinding(t, e.checkPods(t.Context()), "pods", "", StateSkipped, "no kubeconfig can be read here", "")
	k3s := filepath.Join(e.root, pods.Kubeconfigs[0])
	if err := os.MkdirAll(filepath.Dir(k3s), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k3s, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, e.checkPods(t.Context()), "pods", "", StateSkipped, "kubectl is missing", "")
	script := "#!/bin/sh\necho \"$@\" >&2\nexit 3\n"
	for _, name := range []string{"kubectl", "k3s"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f := find(t, e.checkPods(t.Context()), "pods", k3s)
	clitest.WantAll(t, f.Detail, "k3s kubectl: exit status 3: kubectl --kubeconfig "+k3s+" get pods --all-namespaces -o json")
	for name, content := range map[string]string{
		"endless":   "#!/bin/sh\nwhile :; do echo noise >&2; echo '{\"items\":[' ; done\n",
		"not JSON":  "#!/bin/sh\necho no\n",
		"cut short": "#!/bin/sh\necho '{\"items\":[{\"metadata\":{}}'\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, "k3s"), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		if f := find(t, e.checkPods(t.Context()), "pods", ""); f.State != StateSkipped || len(f.Detail) > 2000 {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// TestDoctorFindsImages: where the image of a pod is decides what fixes it.
func TestDoctorFindsImages(t *testing.T) {
	t.Parallel()
	node := func(name string, s report.State) report.NodeState {
		return report.NodeState{Name: name, State: s, Reason: "the disk is full"}
	}
	const lib = "docker.io/library/"
	pinned, local := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	other := "sha256:" + strings.Repeat("c", 64)
	f := &imageFinder{
		announced: map[string]report.ImageState{lib + "app:1": {Reference: lib + "app:1", Digest: pinned, Nodes: []report.NodeState{node("h1", report.Ready), node("h2", report.Failed)}},
			lib + "pulled:1":  {Nodes: []report.NodeState{node("h1", report.Ready), node("h2", report.Ready), node("h3", report.Fetching)}},
			lib + "next:1":    {Reference: lib + "next:1", Nodes: []report.NodeState{node("h1", report.Fetching)}},
			lib + "slow:1":    {Nodes: []report.NodeState{node("h1", report.Ready)}},
			lib + "blocked:1": {Nodes: []report.NodeState{{Name: "h1", State: report.Ready, Blocked: "the kubelet refuses it, since a pull never ended: rm FILE && systemctl restart k3s-agent"}}}},
		byDigest: map[string]string{local: lib + "near:1"},
		members:  map[string]bool{"h1": true, "h2": true},
		holders:  map[string][]string{lib + "far:1": {"h2"}},
		host:     "h1",
		pulled: map[string]kubelet.Record{
			lib + "next:1":        {Names: []string{"next"}, File: "/FILE", Fix: "rm /FILE"},
			lib + "pulled:1":      {Names: []string{"pulled"}, File: "/FILE", Fix: "rm /FILE && systemctl restart k3s"},
			lib + "app@" + pinned: {Names: []string{"app"}, File: "/FILE", Fix: "rm /FILE"},
			lib + "app:1":         {Names: []string{"app"}, File: "/FILE", Fix: "rm /FILE"},
			lib + "slow:1":        {File: "/FILE", Fix: "rm /FILE"},
		},
		places: map[string]place{lib + "near:1": {"is in this host's Docker and not announced", "seeder announce near:1"}},
	}
	for _, c := range []struct{ image, node, policy, detail, fix string }{
		{"app:1", "h1", "Never", "is announced, and ready there", "wait"},
		{"app:1", "h2", "Never", "is announced, but failed there: the disk is full", "seeder wait app:1"},
		{"app:1", "h9", "Never", "no member is called h9", "on h9: systemctl enable --now seeder"},
		{"near:1", "h1", "Never", "is in this host's Docker", "seeder announce near:1"},
		{"near:1", "h1", "Always", "asks a registry even if the host has the image", "set imagePullPolicy: IfNotPresent (or Never) for it, or have containerd ask seeder first (registry.bind and `seeder registry setup`), and: seeder announce near:1"},
		{"far:1", "h1", "Never", "is on h2 and not announced", "on h2: seeder announce far:1"},
		{"none:1", "h1", "Never", "is on no host that answers", "docker build -t none:1 . && seeder announce none:1"},
		{"slow:1", "h1", "Never", "is announced and ready there, but the kubelet has pulled that image itself, was ended before it noted how", "`rm /FILE`"},
		{"blocked:1", "h1", "Never", "is announced and ready there, but the kubelet refuses it, since a pull never ended", "on h1: rm FILE && systemctl restart k3s-agent"},
		{"pulled:1", "h1", "Never", "is announced, and ready there", "wait"},
		{lib + "pulled:1", "h1", "Never", "is announced and ready there, but the kubelet has pulled that image itself and does not start it without another pull for pods that write it as docker.io/library/pulled (/FILE)",
			"write it as pulled:1 in the pod's template, as it was pulled; or `rm /FILE && systemctl restart k3s`"},
		{lib + "next:1", "h1", "Never", "is announced, but fetching there", "seeder wait next:1"},
		{lib + "pulled:1", "h1", "Always", "is announced, and ready there", "wait"},
		{lib + "pulled:1", "h2", "Never", "is announced, and ready there", "`seeder doctor` on h2 says whether its kubelet"},
		{lib + "app@" + pinned, "h1", "IfNotPresent", "pods that write it as docker.io/library/app (/FILE)", "write it as app@" + pinned + " in"},
		{"app@" + pinned, "h1", "Never", "is announced, and ready there", "wait"},
		{"app@" + local, "h1", "Never", "is in this host's Docker and not announced", "seeder announce near:1"},
		{"app@" + other, "h1", "Never", "is on no host that answers", "on a host that has it, `seeder announce` the name that stands for it (`k3s ctr images ls | grep " + other + "`)"},
		{"UPPER", "h1", "Never", "is not a valid image name", "correct it"},
	} {
		detail, fix := f.fix(pods.Waiting{Image: c.image, Node: c.node, Policy: c.policy, Namespace: "d", Name: "p"})
		if !strings.Contains(detail, c.detail) || !strings.Contains(fix, c.fix) || c.node == "h1" && strings.Contains(fix, "seeder doctor` on h1") {
			t.Errorf("%s on %s: %q, %q", c.image, c.node, detail, fix)
		}
	}
}
