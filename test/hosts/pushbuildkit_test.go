package hosts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

const buildkitSocket = "unix:///run/buildkit/buildkitd.sock"

// TestPushByBuildKit: what BuildKit's image exporter pushes at the end of a build is announced
// and runs on both hosts: as it does it by itself, as docker buildx asks it for (an index with
// an attestation of where the image comes from), and with layers in zstd; a second build, too.
// Nothing of a push is left in data_dir, and without the credentials it is refused.
func TestPushByBuildKit(t *testing.T) {
	bin, err := filepath.Abs("../../bin/producers")
	if err != nil {
		t.Fatal(err)
	}
	buildkitd, buildctl := filepath.Join(bin, "buildkitd"), filepath.Join(bin, "buildctl")
	if _, err := os.Stat(buildkitd); err != nil {
		t.Skipf("%v; `make producers` builds it", err)
	}
	n := harness.NewNetwork(t, "")
	for range 2 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_REGISTRY_BIND="+mirror, "SEEDER_REGISTRY_PUSH=true")
	}
	a := n.Hosts[0]
	a.AwaitMembers(2)
	d := a.Start(nil, buildkitd, "--addr", buildkitSocket, "--root", "/var/lib/buildkit", "--containerd-worker=false",
		"--oci-worker=true", "--oci-worker-snapshotter=native", "--oci-worker-net=host")
	harness.Eventually(t, 30*time.Second, "buildkitd answers", func() error {
		if out, err := a.In(t.Context(), buildctl, "--addr", buildkitSocket, "debug", "workers").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s\n%s", err, out, d.Log.Tail(5))
		}
		return nil
	})
	// docker login writes this file, too.
	a.Sh(`mkdir -p /run/docker-config && printf '{"auths":{"` + mirror + `":{"auth":"%s"}}}' $(tr -d '\n' </var/lib/seeder/registry-credentials | base64 -w0) >/run/docker-config/config.json`)
	engine := harness.Engine{Host: a}
	for i, how := range []struct{ name, output, more string }{
		{"by-itself", "", ""},
		{"attested", "", " --opt attest:provenance=mode=min"},
		{"zstd", ",compression=zstd,force-compression=true,oci-mediatypes=true", ""},
	} {
		build := func(says string) string {
			t.Helper()
			dir := engine.BuildContext(says)
			return a.Sh("DOCKER_CONFIG=/run/docker-config " + buildctl + " --addr " + buildkitSocket + " build --progress plain --frontend dockerfile.v0 --local context=" + dir + " --local dockerfile=" + dir + how.more +
				" --output type=image,name=" + mirror + "/" + how.name + ":v1,push=true" + how.output + " 2>&1")
		}
		ref := "docker.io/library/" + how.name + ":v1"
		for nth, says := range []string{fmt.Sprint("one ", i), fmt.Sprint("two ", i)} {
			out := build(says)
			a.Run("wait", ref, "--timeout", "1m")
			for _, h := range n.Hosts {
				if got := h.RunContainer(ref); got != says {
					t.Errorf("build %d, %s: a container on %s prints %q, want %q\n%s", nth, how.name, h.Name, got, says, out)
				}
			}
			if left := a.Sh("ls /var/lib/seeder/pushed"); left != "" {
				t.Errorf("build %d, %s: the push left %q", nth, how.name, left)
			}
		}
	}
	if out, err := a.In(t.Context(), "sh", "-c", "DOCKER_CONFIG=/run/none "+buildctl+" --addr "+buildkitSocket+" build --frontend dockerfile.v0 --local context="+engine.BuildContext("x")+" --local dockerfile="+engine.BuildContext("x")+
		" --output type=image,name="+mirror+"/refused:v1,push=true 2>&1").CombinedOutput(); err == nil || !strings.Contains(string(out), "401") && !strings.Contains(string(out), "nauthorized") {
		t.Errorf("without the credentials: %v\n%s", err, out)
	}
}
