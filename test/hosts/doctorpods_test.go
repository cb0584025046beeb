package hosts

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"seeder/test/harness"
)

// waitingPods gives the host a k3s whose kubectl knows pods that wait, each for one of
// the images, on the second host.
func waitingPods(h *harness.Host, images ...string) (env []string) {
	h.T.Helper()
	var pods []string
	for i, image := range images {
		pods = append(pods, fmt.Sprintf(`{"metadata":{"namespace":"web","name":"p%d"},"spec":{"nodeName":"h2","containers":[{"name":"c","image":%q,"imagePullPolicy":"Never"}]},"status":{"containerStatuses":[{"name":"c","state":{"waiting":{"reason":"ErrImageNeverPull"}}}]}}`, i, image))
	}
	h.Sh("mkdir -p /etc/standin /etc/rancher/k3s && touch /etc/rancher/k3s/k3s.yaml")
	h.Write("/etc/standin/pods.json", `{"apiVersion":"v1","items":[`+strings.Join(pods, ",")+`],"kind":"List"}`, 0o644)
	h.Write("/etc/standin/k3s", "#!/bin/sh\n[ \"$1 $2 $3\" = 'kubectl --kubeconfig /etc/rancher/k3s/k3s.yaml' ] && exec cat /etc/standin/pods.json\nexit 9\n", 0o755)
	// What the fixes say is k3s's ctr is containerd's own.
	h.Write("/etc/standin/k3s-ctr", "#!/bin/sh\nexec "+h.Bin+"/ctr -a "+harness.Socket+" \"$@\"\n", 0o755)
	return []string{"PATH=/etc/standin:" + h.Bin + ":" + os.Getenv("PATH")}
}

// fixOf is what the finding about a pod says to do.
func (c checkup) fixOf(t *testing.T, pod, detail string) string {
	t.Helper()
	for _, f := range c.Checks {
		if f.Name == "pods" && f.Subject == pod {
			if f.State != "problem" || !strings.Contains(f.Detail, detail) {
				t.Errorf("%s: %+v, want %q", pod, f, detail)
			}
			return f.Fix
		}
	}
	t.Fatalf("nothing of %s:\n%s", pod, c)
	return ""
}

// TestDoctorPods: for each pod that waits, doctor says where its image is and which
// command fixes it; the commands are run as they are, and do.
func TestDoctorPods(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	archive := func(name string) string {
		return harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/" + name + ":1", Says: name}).DockerArchive(t, n.Dir)
	}
	a.Ctr("images", "import", archive("near"))
	b.Ctr("images", "import", archive("far"))
	a.Sh(a.Bin + "/ctr -a " + harness.Socket + " -n default images import " + archive("stray"))
	env := waitingPods(a, "near:1", "far:1", "stray:1", "none:1")
	out := doctor(a, env...)
	near := out.fixOf(t, "web/p0", "ErrImageNeverPull on h2: image near:1 is in this host's containerd and not announced")
	far := out.fixOf(t, "web/p1", "image far:1 is on h2 and not announced")
	stray := out.fixOf(t, "web/p2", "image stray:1 is in the namespace default of this host's containerd")
	none := out.fixOf(t, "web/p3", "image none:1 is on no host that answers")
	for got, want := range map[string]string{
		near: "seeder announce near:1", far: "on h2: seeder announce far:1", none: "build or import it first",
		stray: "k3s ctr -n default images export - docker.io/library/stray:1 | seeder announce --from - stray:1",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	shell := func(h *harness.Host, command string) {
		t.Helper()
		command = strings.NewReplacer("k3s ctr", "/etc/standin/k3s-ctr", "seeder ", harness.SeederBin(t)+" ").Replace(command)
		// ctr of containerd 2 ends now and then before all of an export is written, one in
		// some sixty on a loaded machine; seeder says so, and a reader of that tries again.
		for try := 1; ; try++ {
			out, err := h.In(t.Context(), "sh", "-c", "PATH="+h.Bin+":$PATH; "+command).CombinedOutput()
			if err == nil {
				return
			}
			if try == 5 || !strings.Contains(string(out), "it is cut off") {
				t.Fatalf("%s on %s: %v\n%s", command, h.Name, err, out)
			}
		}
	}
	// announce says the same of an image that is where no kubelet looks.
	said, err := a.In(t.Context(), harness.SeederBin(t), "announce", "stray:1", "--from", "containerd").CombinedOutput()
	for _, want := range []string{"it is in the namespace default, where no kubelet looks: ", " -n default images export - docker.io/library/stray:1 | seeder announce --from - docker.io/library/stray:1"} {
		if err == nil || !strings.Contains(string(said), want) {
			t.Errorf("announce says %q (%v), want %q", said, err, want)
		}
	}
	shell(a, near)
	shell(b, strings.TrimPrefix(far, "on h2: "))
	shell(a, stray)
	out = doctor(a, env...)
	for _, pod := range []string{"web/p0", "web/p1", "web/p2"} {
		out.fixOf(t, pod, "is announced, and ready there")
	}
	for _, ref := range []string{"near", "far", "stray"} {
		if got := b.RunContainer("docker.io/library/" + ref + ":1"); got != ref {
			t.Errorf("a container from %s prints %q", ref, got)
		}
	}
}
