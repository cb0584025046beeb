package hosts

import (
	"path/filepath"
	"syscall"
	"testing"

	"seeder/test/harness"
)

// TestDevelopmentTools: what Skaffold and Tilt do with the registry of a host, without them:
// the names that they push to, by docker, and those that they write into pods. Skaffold's is
// that of the push with the digest, which each host's containerd then gets from the registry of
// its own host, with what setup writes for containerd and with what k3s makes of it. Tilt's is
// the announced one.
func TestDevelopmentTools(t *testing.T) {
	n := harness.NewNetwork(t, "")
	const certs = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"
	for range 3 {
		h := n.AddHost(harness.Newest)
		h.Write("/etc/seeder/seeder.yaml", "registry: {bind: \""+mirror+"\", push: true}\n", 0o600)
		h.StartContainerdWith(certs)
		h.StartSeeder("SEEDER_REGISTRY_BIND="+mirror, "SEEDER_REGISTRY_PUSH=true")
	}
	cluster := n.Hosts
	a, b, c := cluster[0], cluster[1], cluster[2]
	a.Run("registry", "setup", "--for", "containerd", "--write")
	b.Run("registry", "setup", "--for", "containerd", "--write")
	c.Containerd.Stop(t, syscall.SIGTERM)
	c.StartContainerdWith(certs + asK3s(t, c))
	a.AwaitMembers(3)
	a.StartSSH(mayPush)
	l := laptop(n)
	docker := harness.Docker(l)
	bin, err := filepath.Abs("../../bin/docker/usr/bin/docker")
	if err != nil {
		t.Fatal(err)
	}
	forward(l, a, mirror)
	l.Write("/run/password", a.Sh("cut -d: -f2 /var/lib/seeder/registry-credentials"), 0o600)
	l.Sh(bin + " --config /run/docker-config login -u seeder --password-stdin " + mirror + " </run/password >&2")
	docker.Build(docker.BuildContext("built by a tool"), "local:v1")
	pushed := func(name string) (as, digest string) {
		t.Helper()
		as = mirror + "/" + name
		l.Sh(bin + " tag local:v1 " + as + " && " + bin + " --config /run/docker-config push " + as)
		a.Run("wait", name, "--timeout", "1m")
		row, err := a.Image(name)
		if err != nil {
			t.Fatal(err)
		}
		return as, row.Digest
	}

	as, digest := pushed("k3s-dashboard:skaffold-1") // default-repo + "/" + the image's name, tag by its policy
	pod := as + "@" + digest
	for _, h := range cluster {
		pullAlways(t, h, pod)
		if got := h.RunContainer(mirror + "/k3s-dashboard@" + digest); got != "built by a tool" {
			t.Errorf("a container from %s on %s prints %q", pod, h.Name, got)
		}
	}
	pushed("k3s-dashboard:tilt-0123456789abcdef") // default_registry; its host_from_cluster is docker.io/library
	for _, h := range cluster {
		if got := h.RunContainer("docker.io/library/k3s-dashboard:tilt-0123456789abcdef"); got != "built by a tool" {
			t.Errorf("a container from Tilt's image on %s prints %q", h.Name, got)
		}
	}
}
