package hosts

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// TestPushMayNotAnnounce: a push to a host that is not in announcers is refused with the
// reason and its fix, whether layers are missing there or not, and nothing of it is left. The
// same push to a host that is listed is taken.
func TestPushMayNotAnnounce(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	listed, other := n.Hosts[0], n.Hosts[1]
	var status, own report.Status
	for h, s := range map[*harness.Host]*report.Status{listed: &status, other: &own} {
		if err := h.Try(s, "status"); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGTERM)
		h.StartSeeder("SEEDER_ANNOUNCERS="+status.ID, "SEEDER_REGISTRY_BIND="+mirror, "SEEDER_REGISTRY_PUSH=true")
		h.StartSSH(mayPush)
	}
	listed.AwaitMembers(2)
	l := laptop(n)
	bin, err := filepath.Abs("../../bin/docker/usr/bin/docker")
	if err != nil {
		t.Fatal(err)
	}
	docker := harness.Docker(l)
	docker.Build(docker.BuildContext("one"), "app:v1")
	ports := map[*harness.Host]string{listed: "127.0.0.1:7961", other: "127.0.0.1:7962"}
	for h, port := range ports {
		forward(l, h, port)
		l.Write("/run/password", h.Sh("cut -d: -f2 /var/lib/seeder/registry-credentials"), 0o600)
		l.Sh(bin + " --config /run/docker-config login -u seeder --password-stdin " + port + " </run/password >&2")
	}
	dockerPush := func(h *harness.Host, as string) (string, error) {
		t.Helper()
		as = ports[h] + "/" + as
		out, err := l.In(t.Context(), "sh", "-c", bin+" --config /run/docker-config tag app:v1 "+as+" && "+bin+" --config /run/docker-config push "+as+" 2>&1").CombinedOutput()
		return string(out), err
	}
	seederPush := func(h *harness.Host, image string) (string, error) {
		t.Helper()
		return push(l, harness.SSHUser+"@"+h.Address+" "+image)
	}
	before := names(other)
	refused := func(what, says, out string, err error) {
		t.Helper()
		want := fmt.Sprintf(says+": this node's id %s is not in `announcers`; announce on a host that is, or add the id there on every host", own.ID)
		if harness.ExitCode(err) != 1 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d, %s\nwant 1 and %q", what, harness.ExitCode(err), out, want)
		}
		if left := other.Sh("ls /var/lib/seeder/pushed") + l.Sh("ls /var/lib/tmp"); left != "" {
			t.Errorf("%s: it left %q", what, left)
		}
		if got := names(other); !slices.Equal(got, before) {
			t.Errorf("%s: containerd's names were %v and are %v", what, before, got)
		}
		if _, err := listed.Image("refused:v1"); err == nil {
			t.Errorf("%s: it is announced", what)
		}
	}
	dockerSays, seederSays := "denied", "on "+harness.SSHUser+"@"+other.Address
	out, err := dockerPush(other, "refused:v1")
	refused("docker push of what is missing", dockerSays, out, err)
	l.Sh(bin + " tag app:v1 refused:v1")
	out, err = seederPush(other, "refused:v1")
	refused("seeder push of what is missing", seederSays, out, err)

	// The same comes from the host that may, so that this one has all of it.
	l.Sh(bin + " tag app:v1 by-seeder:v1")
	for _, by := range []struct {
		name, ref, says string
		push            func(*harness.Host, string) (string, error)
	}{{"docker push", "by-docker:v1", dockerSays, dockerPush}, {"seeder push", "by-seeder:v1", seederSays, seederPush}} {
		if out, err := by.push(listed, by.ref); err != nil {
			t.Fatalf("%s to the host in announcers: %v\n%s", by.name, err, out)
		}
		listed.Run("wait", by.ref, "--timeout", "1m")
		before = names(other)
		out, err := by.push(other, "refused:v1")
		refused(by.name+" of what is there", by.says, out, err)
	}
	wantLeases(other)
}
