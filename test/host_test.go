package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	sockPath = "/run/k3s/containerd/containerd.sock"
	// containerdMetrics is where a host's containerd says what it was asked.
	containerdMetrics = "127.0.0.1:7959"
)

// containerds are the versions to test with, by the first two numbers of what they
// call themselves (addHost asks them): where their programs are. k3s ships 2.2 and 2.3.
var containerds = map[string]string{
	"1.7": "../bin/containerd-1.7",
	"2.2": "../bin/containerd-2.2",
	"2.3": "../bin/containerd-2.3",
}

// newest is the version that tests use which are not about versions.
const newest = "2.3"

// askVersion is what a containerd calls itself, e.g. 2.3.7+unknown.
func askVersion(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", program, err)
	}
	fields := strings.Fields(string(out)) // containerd MODULE VERSION [REVISION]
	if len(fields) < 3 || fields[0] != "containerd" {
		return "", fmt.Errorf("%s --version printed %q", program, out)
	}
	return strings.TrimPrefix(fields[2], "v"), nil
}

// TestContainerdVersions: each containerd is the version that the tests call it.
func TestContainerdVersions(t *testing.T) {
	for version, dir := range containerds {
		asked, err := askVersion(t.Context(), filepath.Join(dir, "containerd"))
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s is containerd %s", dir, asked)
		if !strings.HasPrefix(asked, version+".") {
			t.Errorf("%s is containerd %s, the tests call it %s", dir, asked, version)
		}
	}
}

// host is one machine of the cluster.
type host struct {
	*space
	t       *testing.T
	net     *network
	name    string
	address string
	port    string // of the switch
	dir     string
	version string // of containerd, as it calls itself
	bin     string
	program string // the command line; "" for bin/seeder

	containerd *daemon
	seeder     *daemon
}

// path is where the host's file is seen from outside.
func (h *host) path(inside string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, inside) }

func (h *host) write(inside, content string, mode os.FileMode) {
	h.t.Helper()
	if err := os.WriteFile(h.path(inside), []byte(content), mode); err != nil {
		h.t.Fatal(err)
	}
}

// startContainerd starts the host's containerd as k3s does, and waits for it.
func (h *host) startContainerd() {
	h.t.Helper()
	h.startContainerdWith("")
}

// startContainerdWith is startContainerd with more in the configuration, run by a wrapper.
func (h *host) startContainerdWith(more string, wrapper ...string) {
	h.t.Helper()
	config := fmt.Sprintf(`version = 2
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"
[grpc]
  address = %q
[metrics]
  address = %q
%s`, sockPath, containerdMetrics, more)
	h.write("/etc/containerd-test.toml", config, 0o644)
	h.containerd = h.start(nil, append(wrapper, filepath.Join(h.bin, "containerd"), "-c", "/etc/containerd-test.toml")...)
	eventually(h.t, 30*time.Second, "containerd and its CRI answer on "+h.name, func() error {
		select {
		case <-h.containerd.done:
			h.t.Fatalf("containerd ended on %s:\n%s", h.name, h.containerd.log.tail(30))
		default:
		}
		_, err := h.imageStatus("none:latest")
		return err
	})
}

// ctr runs containerd's own client in the kubelet's namespace.
func (h *host) ctr(args ...string) string {
	h.t.Helper()
	cmd := h.ctrCmd(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr // its own warnings
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("ctr %s on %s: %v\n%s", strings.Join(args, " "), h.name, err, stderr.String())
	}
	return string(out)
}

func (h *host) ctrCmd(args ...string) *exec.Cmd {
	cmd := h.in(h.t.Context(), append([]string{filepath.Join(h.bin, "ctr"), "-a", sockPath, "-n", "k8s.io"}, args...)...)
	cmd.Env = h.env()
	return cmd
}

// client is containerd's API as Go programs use it.
func (h *host) client() *client.Client {
	h.t.Helper()
	c, err := client.New(h.path(sockPath), client.WithDefaultNamespace("k8s.io"), client.WithTimeout(5*time.Second))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// cri is a connection to the host's CRI from outside.
func (h *host) cri() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///cri", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.path(sockPath))
		}))
}

// imageStatus asks CRI as the kubelet does; nil where it does not know ref.
func (h *host) imageStatus(ref string) (*runtime.Image, error) {
	conn, err := h.cri()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := runtime.NewImageServiceClient(conn).ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return nil, err
	}
	return resp.GetImage(), nil
}

// importImage does what people do: ctr images import on one host.
func (h *host) importImage(spec imageSpec) {
	h.t.Helper()
	h.ctr("images", "import", newImage(h.t, spec).dockerArchive(h.t, h.net.dir))
}

// runContainer starts a container from ref and returns what it printed.
func (h *host) runContainer(ref string) string {
	h.t.Helper()
	name := "c" + strconv.FormatInt(time.Now().UnixNano(), 36)
	return strings.TrimSpace(h.ctr("run", "--rm", ref, name))
}

// dump prints what helps to understand a failure.
func (h *host) dump() {
	h.t.Logf("--- %s (%s, containerd %s)", h.name, h.address, h.version)
	if h.seeder != nil {
		h.t.Logf("seeder:\n%s", h.seeder.log.tail(40))
		for _, what := range []string{"images", "members"} {
			var out json.RawMessage
			if err := h.try(&out, what); err != nil {
				out = json.RawMessage(err.Error())
			}
			h.t.Logf("%s: %s", what, out)
		}
	}
	if h.containerd != nil {
		h.t.Logf("containerd:\n%s", h.containerd.log.tail(8))
	}
}
