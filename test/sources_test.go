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

// Engine is Docker or Podman on a host.
type Engine struct {
	*Host
	Kind  string
	Build func(dir, tag string, more ...string)
}

// Podman starts Debian's Podman with its API on the socket where it is on any host.
func Podman(h *Host) Engine {
	h.T.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		h.T.Fatalf("podman is not installed: %v; `make test` installs it", err)
	}
	args := strings.Fields(PodmanArgs)
	h.Sh("mkdir -p /run/podman")
	d := h.Start(nil, append(args, "system", "service", "--time", "0", "unix:///run/podman/podman.sock")...)
	awaitSocket(h, d, "/run/podman/podman.sock")
	return Engine{h, "podman", func(dir, tag string, more ...string) {
		h.T.Helper()
		Run(h.T, h.In(h.T.Context(), append(append(args, "build", "-q", "--isolation", "chroot", "-t", tag), append(more, dir)...)...))
	}}
}

// Docker starts Debian's dockerd, which `make test` unpacks to bin/docker: installed,
// it would run on this machine for good.
func Docker(h *Host) Engine {
	h.T.Helper()
	bin, err := filepath.Abs("../bin/docker/usr")
	if err != nil {
		h.T.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "sbin/dockerd")); err != nil {
		h.T.Fatalf("dockerd is not there: %v; `make test` gets it", err)
	}
	// Without a bridge, a proxy and rules of iptables: it builds and saves, and runs nothing.
	d := h.Start(nil, filepath.Join(bin, "sbin/dockerd"), "--host", "unix:///run/docker.sock", "--data-root", "/var/lib/docker",
		"--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--storage-driver", "vfs")
	awaitSocket(h, d, "/run/docker.sock")
	return Engine{h, "docker", func(dir, tag string, more ...string) {
		h.T.Helper()
		Run(h.T, h.In(h.T.Context(), append([]string{filepath.Join(bin, "bin/docker"), "build", "-q", "-t", tag}, append(more, dir)...)...))
	}}
}

// awaitSocket waits until d answers by the Docker API on a socket.
func awaitSocket(h *Host, d *Daemon, path string) {
	h.T.Helper()
	there := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.Path(path))
	}}}
	defer there.CloseIdleConnections()
	Eventually(h.T, 60*time.Second, path+" answers on "+h.Name, func() error {
		select {
		case <-d.Done:
			h.T.Fatalf("%s ended on %s:\n%s", d.Cmd.Args[len(d.Cmd.Args)-1], h.Name, d.Log.Tail(30))
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

// BuildContext makes what an image is built from.
func (e Engine) BuildContext(says string) (dir string) {
	e.T.Helper()
	dir, err := os.MkdirTemp(e.Net.Dir, "build-")
	if err != nil {
		e.T.Fatal(err)
	}
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		e.T.Fatal(err)
	}
	for name, content := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\nCOPY busybox /bin/sh\nCOPY say /say\nENV PATH=/bin\nCMD [\"/say\"]\n",
		"busybox":    string(shell), "say": "#!/bin/sh\necho " + says + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			e.T.Fatal(err)
		}
	}
	return dir
}

// PodmanArgs keep Podman's things on the host.
const PodmanArgs = "podman --root /var/lib/podman --runroot /run/podman-run --storage-driver vfs --cgroup-manager cgroupfs --events-backend none"

// TestFromDockerAndPodman: right after a build an announcement is all it takes. Of
// two builds the newer one is meant, and it is said which; --from decides.
func TestFromDockerAndPodman(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"podman", "docker"} {
		t.Run(kind, func(t *testing.T) {
			n := NewCluster(t, Newest, 2, "")
			a := n.Hosts[0]
			e := map[string]func() Engine{"podman": func() Engine { return Podman(a) }, "docker": func() Engine { return Docker(a) }}[kind]()
			all := func(says string) {
				t.Helper()
				for _, h := range n.Hosts {
					becomes(h, says)
				}
			}
			err := a.Try(nil, "announce", ShortName)
			if ExitCode(err) != 1 || !strings.Contains(err.Error(), "has no image "+FullName) || !strings.Contains(err.Error(), kind+" (unix:///run/") {
				t.Errorf("an image that nobody has: %v", err)
			}
			e.Build(e.BuildContext("one"), ShortName)
			out := a.Run("announce", ShortName)
			if want := ShortName + " comes from " + kind + ": containerd does not have it"; !strings.Contains(out, want) {
				t.Errorf("printed %q, want %q", out, want)
			}
			all("one")
			if out := a.Run("announce", ShortName); strings.Contains(out, "comes from") || !strings.Contains(out, "version 1") {
				t.Errorf("the same build once more:\n%s", out)
			}
			e.Build(e.BuildContext("two"), ShortName)
			out = a.Run("announce", ShortName)
			if !strings.Contains(out, "comes from "+kind+": its build ") || !strings.Contains(out, "is newer than containerd's") {
				t.Errorf("a newer build:\n%s", out)
			}
			all("two")
			// containerd's becomes the newer one.
			e.Build(e.BuildContext("three"), ShortName)
			a.Run("announce", ShortName)
			all("three")
			a.Run("announce", "--rollback", ShortName)
			all("two")
			out = a.Run("announce", ShortName, "--from", "containerd")
			if strings.Contains(out, "comes from") {
				t.Errorf("--from containerd:\n%s", out)
			}
			all("two")
			a.Run("announce", ShortName, "--from", kind)
			all("three")
			if list := a.Ctr("leases", "ls", "-q"); strings.Contains(list, "archive") {
				t.Errorf("a lease of the import is left: %s", list)
			}

			// An older build in the engine is not taken by itself.
			dir := e.BuildContext("four")
			e.Build(dir, "other:v1")
			a.Run("announce", "other:v1")
			save := ctrExport(a, "docker.io/library/other:v1")
			e.Build(e.BuildContext("five"), "other:v1")
			a.Run("announce", "other:v1")
			if kind == "podman" {
				// The first build again, in the engine alone.
				a.Sh(PodmanArgs + " rmi -f localhost/other:v1 && " + PodmanArgs + " load -q -i " + save)
				out = a.Run("announce", "other:v1")
				if !strings.Contains(out, "other:v1 comes from containerd: its build ") || !strings.Contains(out, "is not older than podman's") {
					t.Errorf("an older build in Podman:\n%s", out)
				}
			}
			// As a stream, without a file.
			importStream(a, t, e, ShortName)
			all("three")
		})
	}
}

// ctrExport writes what containerd has under ref to a file.
func ctrExport(h *Host, ref string) string {
	h.T.Helper()
	file := filepath.Join(h.Net.Dir, "export.tar")
	h.Ctr("images", "export", file, ref)
	return file
}

// importStream pipes docker save into announce --from -.
func importStream(h *Host, t *testing.T, e Engine, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	save := PodmanArgs + " save localhost/" + ref
	if e.Kind == "docker" {
		bin, err := filepath.Abs("../bin/docker/usr/bin/docker")
		if err != nil {
			t.Fatal(err)
		}
		save = bin + " save " + ref
	}
	out := Run(t, h.In(ctx, "sh", "-c", save+" | gzip | "+SeederBin(t)+" announce "+ref+" --from -"))
	if !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("announce --from - printed:\n%s", out)
	}
}

// TestAnnounceArchives: all images of an archive are announced by one command.
func TestAnnounceArchives(t *testing.T) {
	t.Parallel()
	n := NewCluster(t, Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	var imgs []*Image
	for i := range 3 {
		imgs = append(imgs, NewImage(t, ImageSpec{Ref: fmt.Sprintf("docker.io/library/app%d:v1", i), Says: "hello", Payload: 1 << 20, Seed: uint64(i)}))
	}
	out := a.Run("announce", "--from", DockerArchive(t, n.Dir, imgs...))
	for _, img := range imgs {
		if !strings.Contains(out, strings.TrimPrefix(img.Ref, "docker.io/library/")+": version 1 is ready on 2 of 2 nodes") {
			t.Errorf("printed:\n%s", out)
		}
		if got := b.RunContainer(img.Ref); got != "hello" {
			t.Errorf("a container from %s prints %q", img.Ref, got)
		}
	}
	// One of them cannot be announced: the others are.
	whole := imgs[0].OCILayout(t)
	delete(whole, "blobs/sha256/"+digest.FromBytes(imgs[0].Layers[1]).Encoded())
	a.Run("withdraw", "--purge", "app0:v1")
	purged(b, "docker.io/library/app0:v1")
	err := a.Try(nil, "announce", "--from", WriteFile(t, n.Dir, "torn-*.tar", TarOf(t, whole)))
	if ExitCode(err) != 1 || !strings.Contains(err.Error(), "the archive is incomplete: layer sha256:"+digest.FromBytes(imgs[0].Layers[1]).Encoded()) {
		t.Errorf("an archive without a layer: %v", err)
	}
	if got := a.Target("docker.io/library/app0:v1"); got != "" {
		t.Errorf("it was named all the same: %s", got)
	}
	if row, err := a.Image("app0:v1"); err != nil || row.State != "withdrawn" {
		t.Errorf("it was announced all the same: %+v %v", row, err)
	}
	wantLeases(a)
}
