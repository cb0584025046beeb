package hosts

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestPushIsAnnounce: what Docker, Podman, skopeo, buildah, containerd's own client (whose code
// nerdctl pushes with), crane and ko push to a host's registry is announced under the name that
// the kubelet has for it and gets to the other host; a second push of the same layers sends
// none of them; nothing of a push is left in data_dir.
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

	const buildah = "buildah --root /var/lib/buildah --runroot /run/buildah --storage-driver vfs "
	a.Sh(buildah + "build --isolation chroot -q -t buildah-app:v1 " + harness.Engine{Host: a}.BuildContext("by buildah"))
	a.Sh(buildah + "push -q --tls-verify=false --creds $(cat " + credentials + ") localhost/buildah-app:v1 " + mirror + "/buildah-app:v1")
	pushed("buildah-app:v1")
	a.Ctr("images", "tag", "docker.io/library/buildah-app:v1", mirror+"/ctr-app:v1")
	a.Ctr("images", "push", "--plain-http", "--user", strings.TrimSpace(a.Sh("cat "+credentials)), mirror+"/ctr-app:v1")
	pushed("ctr-app:v1")
	goClients(t, a, pushed)

	if out, err := a.In(t.Context(), "sh", "-c", "DOCKER_CONFIG=/run/none "+docker+" push "+mirror+"/k3s-dashboard:latest 2>&1").CombinedOutput(); err == nil {
		t.Errorf("without the credentials:\n%s", out)
	}
	pushWhileAway(t, a, strings.TrimSpace(a.Sh("cat "+credentials)))
}

// pushWhileAway: while containerd is away a push is refused as one that may be tried again, and
// nothing of it is announced; after that it is taken.
func pushWhileAway(t *testing.T, h *harness.Host, credentials string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return harness.Dial(h, mirror) }}}
	ask := func(method, path, mediaType string, body []byte) (int, string, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+mirror+"/v2/skopeo-app/manifests/"+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		user, password, _ := strings.Cut(credentials, ":")
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", mediaType)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		said, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), said
	}
	status, mediaType, manifest := ask("GET", "v1", "", nil)
	if status != http.StatusOK {
		t.Fatalf("GET: %d %s", status, manifest)
	}
	h.Containerd.Stop(t, syscall.SIGTERM)
	status, _, said := ask("PUT", "again", mediaType, manifest)
	if status != http.StatusServiceUnavailable || !strings.Contains(string(said), "containerd") {
		t.Errorf("a push while containerd is away: %d %s, want 503 and why", status, said)
	}
	t.Logf("while containerd is away: %d %s", status, said)
	if _, err := h.Image("skopeo-app:again"); err == nil {
		t.Error("a push that was refused is announced")
	}
	h.StartContainerd()
	harness.Eventually(t, 30*time.Second, "the same push is taken", func() error {
		if status, _, said := ask("PUT", "again", mediaType, manifest); status != http.StatusCreated {
			return fmt.Errorf("%d %s", status, said)
		}
		return nil
	})
	h.Run("wait", "skopeo-app:again", "--timeout", "1m")
}

// goClients push with crane and ko, whose modules `make producers` builds.
func goClients(t *testing.T, a *harness.Host, pushed func(string)) {
	t.Helper()
	bin, err := filepath.Abs("../../bin/producers")
	if err != nil {
		t.Fatal(err)
	}
	crane, ko := filepath.Join(bin, "crane"), filepath.Join(bin, "ko")
	for _, program := range []string{crane, ko} {
		if _, err := os.Stat(program); err != nil {
			t.Logf("not pushed with crane and ko: %v; `make producers` builds them", err)
			return
		}
	}
	// Docker's configuration has the credentials for them, too.
	a.Sh("set -e; export DOCKER_CONFIG=/run/docker-config; " + crane + " push --insecure /run/app.tar " + mirror + "/crane-app:v1")
	pushed("crane-app:v1")
	a.Sh("set -e; export DOCKER_CONFIG=/run/docker-config; " + crane + " mutate --insecure " + mirror + "/crane-app:v1 --set-platform linux/amd64 -t " + mirror + "/base:v1")
	pushed("base:v1")
	app := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example.com/app\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() { println(\"by ko\") }\n"} {
		if err := os.WriteFile(filepath.Join(app, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.Sh("set -e; export DOCKER_CONFIG=/run/docker-config; cd " + app + " && GOFLAGS=-mod=mod GOCACHE=" + filepath.Join(t.TempDir(), "gocache") + " HOME=" + app +
		" KO_DOCKER_REPO=" + mirror + "/ko-app KO_DEFAULTBASEIMAGE=" + mirror + "/base:v1 " + ko + " build --bare --insecure-registry --sbom none -t v1 .")
	pushed("ko-app:v1")
}
