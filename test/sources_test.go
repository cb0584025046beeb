package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// engine is Docker or Podman on a host.
type engine struct {
	*host
	kind  string
	build func(dir, tag string, more ...string)
}

// podman starts Debian's Podman with its API on the socket where it is on any host.
func (h *host) podman() engine {
	h.t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		h.t.Fatalf("podman is not installed: %v; `make test` installs it", err)
	}
	args := strings.Fields(podmanArgs)
	h.sh("mkdir -p /run/podman")
	d := h.start(nil, append(args, "system", "service", "--time", "0", "unix:///run/podman/podman.sock")...)
	h.awaitSocket(d, "/run/podman/podman.sock")
	return engine{h, "podman", func(dir, tag string, more ...string) {
		h.t.Helper()
		run(h.t, h.in(h.t.Context(), append(append(args, "build", "-q", "--isolation", "chroot", "-t", tag), append(more, dir)...)...))
	}}
}

// docker starts Debian's dockerd, which `make test` unpacks to bin/docker: installed,
// it would run on this machine for good.
func (h *host) docker() engine {
	h.t.Helper()
	bin, err := filepath.Abs("../bin/docker/usr")
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "sbin/dockerd")); err != nil {
		h.t.Fatalf("dockerd is not there: %v; `make test` gets it", err)
	}
	// Without a bridge, a proxy and rules of iptables: it builds and saves, and runs nothing.
	d := h.start(nil, filepath.Join(bin, "sbin/dockerd"), "--host", "unix:///run/docker.sock", "--data-root", "/var/lib/docker",
		"--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--storage-driver", "vfs")
	h.awaitSocket(d, "/run/docker.sock")
	return engine{h, "docker", func(dir, tag string, more ...string) {
		h.t.Helper()
		run(h.t, h.in(h.t.Context(), append([]string{filepath.Join(bin, "bin/docker"), "build", "-q", "-t", tag}, append(more, dir)...)...))
	}}
}

// awaitSocket waits until d answers by the Docker API on a socket.
func (h *host) awaitSocket(d *daemon, path string) {
	h.t.Helper()
	there := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.path(path))
	}}}
	defer there.CloseIdleConnections()
	eventually(h.t, 60*time.Second, path+" answers on "+h.name, func() error {
		select {
		case <-d.done:
			h.t.Fatalf("%s ended on %s:\n%s", d.cmd.Args[len(d.cmd.Args)-1], h.name, d.log.tail(30))
		default:
		}
		resp, err := there.Get("http://engine/_ping")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// context makes what an image is built from.
func (e engine) context(says string) (dir string) {
	e.t.Helper()
	dir, err := os.MkdirTemp(e.net.dir, "build-")
	if err != nil {
		e.t.Fatal(err)
	}
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		e.t.Fatal(err)
	}
	for name, content := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\nCOPY say /say\nENV PATH=/bin\nCMD [\"/say\"]\n",
		"busybox":    string(shell), "say": "#!/bin/sh\necho " + says + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			e.t.Fatal(err)
		}
	}
	return dir
}

// podmanArgs keep Podman's things on the host.
const podmanArgs = "podman --root /var/lib/podman --runroot /run/podman-run --storage-driver vfs --cgroup-manager cgroupfs --events-backend none"

// TestFromDockerAndPodman: right after a build an announcement is all it takes. Of
// two builds the newer one is meant, and it is said which; --from decides.
func TestFromDockerAndPodman(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"podman", "docker"} {
		t.Run(kind, func(t *testing.T) {
			n := cluster(t, newest, 2, "")
			a := n.hosts[0]
			e := map[string]func() engine{"podman": a.podman, "docker": a.docker}[kind]()
			all := func(says string) {
				t.Helper()
				for _, h := range n.hosts {
					h.becomes(says)
				}
			}
			err := a.try(nil, "announce", short)
			if exitCode(err) != 1 || !strings.Contains(err.Error(), "has no image "+full) || !strings.Contains(err.Error(), kind+" (unix:///run/") {
				t.Errorf("an image that nobody has: %v", err)
			}
			e.build(e.context("one"), short)
			out := a.run("announce", short)
			if want := short + " comes from " + kind + ": containerd does not have it"; !strings.Contains(out, want) {
				t.Errorf("printed %q, want %q", out, want)
			}
			all("one")
			if out := a.run("announce", short); strings.Contains(out, "comes from") || !strings.Contains(out, "version 1") {
				t.Errorf("the same build once more:\n%s", out)
			}
			e.build(e.context("two"), short)
			out = a.run("announce", short)
			if !strings.Contains(out, "comes from "+kind+": its build ") || !strings.Contains(out, "is newer than containerd's") {
				t.Errorf("a newer build:\n%s", out)
			}
			all("two")
			// containerd's becomes the newer one.
			e.build(e.context("three"), short)
			a.run("announce", short)
			all("three")
			a.run("announce", "--rollback", short)
			all("two")
			out = a.run("announce", short, "--from", "containerd")
			if strings.Contains(out, "comes from") {
				t.Errorf("--from containerd:\n%s", out)
			}
			all("two")
			a.run("announce", short, "--from", kind)
			all("three")
			if list := a.ctr("leases", "ls", "-q"); strings.Contains(list, "archive") {
				t.Errorf("a lease of the import is left: %s", list)
			}

			// An older build in the engine is not taken by itself.
			dir := e.context("four")
			e.build(dir, "other:v1")
			a.run("announce", "other:v1")
			save := a.ctrExport("docker.io/library/other:v1")
			e.build(e.context("five"), "other:v1")
			a.run("announce", "other:v1")
			if kind == "podman" {
				// The first build again, in the engine alone.
				a.sh(podmanArgs + " rmi -f localhost/other:v1 && " + podmanArgs + " load -q -i " + save)
				out = a.run("announce", "other:v1")
				if !strings.Contains(out, "other:v1 comes from containerd: its build ") || !strings.Contains(out, "is not older than podman's") {
					t.Errorf("an older build in Podman:\n%s", out)
				}
			}
			// As a stream, without a file.
			a.importStream(t, e, short)
			all("three")
		})
	}
}

// ctrExport writes what containerd has under ref to a file.
func (h *host) ctrExport(ref string) string {
	h.t.Helper()
	file := filepath.Join(h.net.dir, "export.tar")
	h.ctr("images", "export", file, ref)
	return file
}

// importStream pipes docker save into announce --from -.
func (h *host) importStream(t *testing.T, e engine, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	save := podmanArgs + " save localhost/" + ref
	if e.kind == "docker" {
		bin, err := filepath.Abs("../bin/docker/usr/bin/docker")
		if err != nil {
			t.Fatal(err)
		}
		save = bin + " save " + ref
	}
	out := run(t, h.in(ctx, "sh", "-c", save+" | gzip | "+seederBin(t)+" announce "+ref+" --from -"))
	if !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("announce --from - printed:\n%s", out)
	}
}

// TestAnnounceArchives: all images of an archive are announced by one command.
func TestAnnounceArchives(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	var imgs []*image
	for i := range 3 {
		imgs = append(imgs, newImage(t, imageSpec{ref: fmt.Sprintf("docker.io/library/app%d:v1", i), says: "hello", payload: 1 << 20, seed: uint64(i)}))
	}
	out := a.run("announce", "--from", dockerArchive(t, n.dir, imgs...))
	for _, img := range imgs {
		if !strings.Contains(out, strings.TrimPrefix(img.ref, "docker.io/library/")+": version 1 is ready on 2 of 2 nodes") {
			t.Errorf("printed:\n%s", out)
		}
		if got := b.runContainer(img.ref); got != "hello" {
			t.Errorf("a container from %s prints %q", img.ref, got)
		}
	}
	// One of them cannot be announced: the others are.
	whole := imgs[0].ociLayout(t)
	delete(whole, "blobs/sha256/"+digest.FromBytes(imgs[0].layers[1]).Encoded())
	a.run("withdraw", "--purge", "app0:v1")
	b.purged("docker.io/library/app0:v1")
	err := a.try(nil, "announce", "--from", writeFile(t, n.dir, "torn-*.tar", tarOf(t, whole)))
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "the archive is incomplete: layer sha256:"+digest.FromBytes(imgs[0].layers[1]).Encoded()) {
		t.Errorf("an archive without a layer: %v", err)
	}
	if got := a.target("docker.io/library/app0:v1"); got != "" {
		t.Errorf("it was named all the same: %s", got)
	}
	if row, err := a.image("app0:v1"); err != nil || row.State != "withdrawn" {
		t.Errorf("it was announced all the same: %+v %v", row, err)
	}
	a.wantLeases()
}
