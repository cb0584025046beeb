package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
	clitest.WantAll(t, out, "ok       daemon", "disk        /", "skipped  containerd", "containerd.address is embedded", "this node is alone")
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
	for _, n := range []string{"config", "daemon", "ports", "secret", "join", "containerd", "namespace", "cri", "layers", "registry", "disk", "members", "pods"} {
		if !names[n] {
			t.Errorf("nothing of %s", n)
		}
	}
}

// TestDoctorWithoutRoot: who may not look at something is told what was not checked, and
// that root can; nothing is called wrong for it, and nothing is called right.
func TestDoctorWithoutRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	dir, err := os.MkdirTemp("", "seeder-nobody-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(dir, "private")
	if err := os.Mkdir(private, 0o755); err != nil {
		t.Fatal(err)
	}
	sockets := map[string]string{}
	for _, name := range []string{"api.sock", "containerd.sock"} {
		sockets[name] = filepath.Join(private, name)
		l, err := net.Listen("unix", sockets[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chmod(sockets[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(private, "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("s", 40)), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "seeder.yaml")
	text := fmt.Sprintf("secret_file: %s\ndata_dir: %s\ngossip: {join: [192.0.2.1]}\napi: {socket: %s}\ncontainerd: {address: %s}\n", secret, dir, sockets["api.sock"], sockets["containerd.sock"])
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe") // under a name that everybody may run
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "seeder")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "doctor", "--config", conf, "-o", "json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != cli.ExitFailed {
		t.Errorf("%v, want exit code %d: %s", err, cli.ExitFailed, out)
	}
	var r doctor.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	said := false
	for _, f := range r.Checks {
		switch {
		case f.Name == "root":
			said = true
			clitest.WantAll(t, f.Detail, "daemon, ports, secret, join, containerd, namespace, cri, layers, members")
			clitest.WantAll(t, f.Fix, "sudo seeder doctor")
		case f.State != doctor.StateOK && f.State != doctor.StateSkipped && f.State != doctor.StateWarning:
			t.Errorf("%+v", f)
		}
	}
	if r.OK || !said {
		t.Errorf("ok %v, root is named: %v: %s", r.OK, said, out)
	}
}
