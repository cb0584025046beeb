package hosts

import (
	"path/filepath"
	"strings"
	"testing"

	"seeder/test/harness"
)

// TestPushIsAnnounce: what Docker, Podman and skopeo push to a host's registry is announced
// under the name that the kubelet has for it and gets to the other host; a second push of the
// same layers sends none of them; nothing of a push is left in data_dir.
func TestPushIsAnnounce(t *testing.T) {
	n := harness.NewNetwork(t, "")
	for range 2 {
		h := n.AddHost("2.3")
		h.StartContainerd()
		h.StartSeeder("SEEDER_REGISTRY_BIND="+mirror, "SEEDER_REGISTRY_PUSH=true")
	}
	a := n.Hosts[0]
	a.AwaitMembers(2)
	docker, err := filepath.Abs("../../bin/docker/usr/bin/docker")
	if err != nil {
		t.Fatal(err)
	}
	e := harness.Docker(a)
	e.Build(e.BuildContext("by docker"), "local-app:v1")
	const credentials = "/var/lib/seeder/registry-credentials"
	login := "export DOCKER_CONFIG=/run/docker-config; cut -d: -f2 " + credentials + " | " + docker + " login -u seeder --password-stdin " + mirror + " >&2; "
	tagAndPush := func(as string) string {
		t.Helper()
		return a.Sh("set -e; " + login + docker + " tag local-app:v1 " + mirror + "/" + as + "; " + docker + " push " + mirror + "/" + as)
	}
	pushed := func(ref string) {
		t.Helper()
		a.Run("wait", ref, "--timeout", "1m")
		for _, h := range n.Hosts {
			if got, err := h.ImageStatus(ref); err != nil || got == nil {
				t.Errorf("CRI on %s has no %s: %v, %v", h.Name, ref, got, err)
			}
		}
		if left := a.Sh("ls /var/lib/seeder/pushed"); left != "" {
			t.Errorf("the push of %s left %q", ref, left)
		}
	}
	tagAndPush("k3s-dashboard:latest")
	pushed(harness.FullName)
	for _, h := range n.Hosts {
		h.Ready("by docker")
	}
	if out := tagAndPush("ghcr.io/me/app:v2"); !strings.Contains(out, "Layer already exists") && !strings.Contains(out, "Mounted from") {
		t.Errorf("the layers were sent again:\n%s", out)
	}
	pushed("ghcr.io/me/app:v2")

	e = harness.Podman(a)
	e.Build(e.BuildContext("by podman"), "podman-app:v1")
	a.Sh(harness.PodmanArgs + " push -q --tls-verify=false --creds $(cat " + credentials + ") localhost/podman-app:v1 " + mirror + "/podman-app:v1")
	pushed("podman-app:v1")
	a.Sh(docker + " save local-app:v1 -o /run/app.tar; skopeo copy -q --insecure-policy --dest-tls-verify=false --dest-creds $(cat " + credentials + ") docker-archive:/run/app.tar docker://" + mirror + "/skopeo-app:v1")
	pushed("skopeo-app:v1")

	if out, err := a.In(t.Context(), "sh", "-c", "DOCKER_CONFIG=/run/none "+docker+" push "+mirror+"/k3s-dashboard:latest 2>&1").CombinedOutput(); err == nil {
		t.Errorf("without the credentials:\n%s", out)
	}
}
