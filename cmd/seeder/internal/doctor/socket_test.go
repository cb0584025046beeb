package doctor

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/k3s/k3stest"
	"seeder/store/ctrd"
)

// TestDoctorExaminesTheKubeletsContainerd: on a host whose k3s is down doctor waits for
// k3s's containerd, as the daemon does, and examines no other that happens to run.
func TestDoctorExaminesTheKubeletsContainerd(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("", "socket") // its path has to be short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	for path, content := range map[string]string{k3stest.ServerUnit: k3stest.ServerRuns, k3s.PlainSocket: ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if content != "" {
			err = os.WriteFile(filepath.Join(root, path), []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	docker, err := net.Listen("unix", filepath.Join(root, k3s.PlainSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	e := newTestExam(t, "")
	e.root, e.loaded.Containerd.Address = root, ctrd.Auto
	wantFinding(t, e.checkContainerd(t.Context()), "containerd", ctrd.Auto, stateProblem, "no socket at "+k3s.Socket+" (k3s server, by", "systemctl start k3s")
	wantFinding(t, e.checkCRI(t.Context()), "cri", "", StateSkipped, "containerd cannot be asked: containerd is not available: no socket at "+k3s.Socket, "")
}

// TestAutoNeedsAFinder: nothing but its opener says which containerd auto is.
func TestAutoNeedsAFinder(t *testing.T) {
	t.Parallel()
	if c, err := ctrd.Open(ctrd.Config{Address: ctrd.Auto}); err == nil {
		c.Close()
		t.Fatal("auto was opened without a Find")
	}
}
