package harness

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
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
	bin, err := filepath.Abs("../../bin/docker/usr")
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
