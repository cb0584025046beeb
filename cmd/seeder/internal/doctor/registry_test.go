package doctor

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/cmd/seeder/internal/registry"
	"seeder/p2p/report"
)

// nothing is a catalog without an announcement.
type nothing struct{}

func (nothing) Here(string) (t ocispec.Descriptor, s report.State, ok bool) { return t, s, false }
func (nothing) References() []string                                        { return nil }

// TestDoctorRegistry: what is between containerd and the registry is named, one after the
// other, until nothing is.
func TestDoctorRegistry(t *testing.T) {
	wantFinding(t, newTestExam(t, "").checkRegistry(t.Context()), "registry", "", StateOK, "off", "")

	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bind := free.Addr().String()
	free.Close()
	e := newTestExam(t, "registry: {bind: \""+bind+"\"}\n")
	dir := e.loaded.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want := func(state, detail, fix string) {
		t.Helper()
		wantFinding(t, e.checkRegistry(t.Context()), "registry", bind, state, detail, fix)
	}
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(e.root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want(stateProblem, "no credentials", "systemctl restart seeder")
	auth, err := registry.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	want(stateProblem, "does not answer", "systemctl restart seeder")
	serve := func(auth registry.Credentials) (stop func()) {
		t.Helper()
		r, err := registry.NewServer(bind, auth, nothing{}, nil, registry.Push{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Open(); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	stop := serve(registry.Credentials{User: "seeder", Password: "another"})
	want(stateProblem, "401", "systemctl restart seeder")
	stop()
	defer serve(auth)()
	want(stateProblem, "has no hosts.toml", "seeder registry setup")
	write("etc/containerd/certs.d/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n")
	want(stateProblem, "does not name http://"+bind, "seeder registry setup")

	lines := func(password string) string {
		return "mirrors: {\"*\": {endpoint: [\"http://" + bind + "\"]}}\nconfigs: {\"" + bind + "\": {auth: {password: \"" + password + "\"}}}\n"
	}
	if err := os.MkdirAll(filepath.Join(e.root, "etc/rancher/k3s"), 0o700); err != nil {
		t.Fatal(err)
	}
	want(stateProblem, "/etc/rancher/k3s/registries.yaml does not exist", "seeder registry setup")
	write("etc/rancher/k3s/registries.yaml", lines("another"))
	want(stateProblem, "has other credentials", "seeder registry setup")
	write("etc/rancher/k3s/registries.yaml", lines(auth.Password))
	want(StateOK, "containerd asks it", "")
	made := "var/lib/rancher/k3s/agent/etc/containerd/"
	write(made+"config.toml", "")
	want(stateProblem, "k3s has not read registries.yaml", "systemctl restart k3s")
	write(made+"certs.d/_default/hosts.toml", "[host.\"http://"+bind+"/v2\"]\n")
	want(StateOK, "containerd asks it", "")
}
