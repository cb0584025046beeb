package harness

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
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// Socket is where containerd listens on a host.
	Socket = "/run/k3s/containerd/containerd.sock"
	// ContainerdMetrics is where a host's containerd says what it was asked.
	ContainerdMetrics = "127.0.0.1:7959"
)

// Containerds are the versions to test with, by the first two numbers of what they
// call themselves (AddHost asks them): where their programs are. k3s ships 2.2 and 2.3.
var Containerds = map[string]string{
	"1.7": "../../bin/containerd-1.7",
	"2.2": "../../bin/containerd-2.2",
	"2.3": "../../bin/containerd-2.3",
}

// Newest is the version that tests use which are not about versions.
const Newest = "2.3"

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

// Host is one machine of the cluster.
type Host struct {
	*Space
	T       *testing.T
	Net     *Network
	Name    string
	Address string
	Port    string // of the switch
	Dir     string
	Version string // of containerd, as it calls itself
	Bin     string
	Program string // the command line; "" for bin/seeder

	Containerd *Daemon
	Seeder     *Daemon
}

// Path is where the host's file is seen from outside.
func (h *Host) Path(inside string) string { return fmt.Sprintf("/proc/%d/root%s", h.PID, inside) }

// Write writes a file of the host.
func (h *Host) Write(inside, content string, mode os.FileMode) {
	h.T.Helper()
	if err := os.WriteFile(h.Path(inside), []byte(content), mode); err != nil {
		h.T.Fatal(err)
	}
}

// StartContainerd starts the host's containerd as k3s does, and waits for it.
func (h *Host) StartContainerd() {
	h.T.Helper()
	h.StartContainerdWith("")
}

// StartContainerdWith is StartContainerd with more in the configuration, run by a wrapper.
func (h *Host) StartContainerdWith(more string, wrapper ...string) {
	h.T.Helper()
	config := fmt.Sprintf(`version = 2
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"
[grpc]
  address = %q
[metrics]
  address = %q
%s`, Socket, ContainerdMetrics, more)
	h.Write("/etc/containerd-test.toml", config, 0o644)
	h.Containerd = h.Start(nil, append(wrapper, filepath.Join(h.Bin, "containerd"), "-c", "/etc/containerd-test.toml")...)
	Eventually(h.T, 30*time.Second, "containerd and its CRI answer on "+h.Name, func() error {
		select {
		case <-h.Containerd.Done:
			h.T.Fatalf("containerd ended on %s:\n%s", h.Name, h.Containerd.Log.Tail(30))
		default:
		}
		_, err := h.ImageStatus("none:latest")
		return err
	})
}

// Ctr runs containerd's own client in the kubelet's namespace.
func (h *Host) Ctr(args ...string) string {
	h.T.Helper()
	cmd := h.CtrCmd(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr // its own warnings
	out, err := cmd.Output()
	if err != nil {
		h.T.Fatalf("ctr %s on %s: %v\n%s", strings.Join(args, " "), h.Name, err, stderr.String())
	}
	return string(out)
}

// CtrCmd is a command of containerd's own client, not started yet.
func (h *Host) CtrCmd(args ...string) *exec.Cmd {
	cmd := h.In(h.T.Context(), append([]string{filepath.Join(h.Bin, "ctr"), "-a", Socket, "-n", "k8s.io"}, args...)...)
	cmd.Env = h.Env()
	return cmd
}

// Client is containerd's API as Go programs use it.
func (h *Host) Client() *client.Client {
	h.T.Helper()
	c, err := client.New(h.Path(Socket), client.WithDefaultNamespace("k8s.io"), client.WithTimeout(5*time.Second))
	if err != nil {
		h.T.Fatal(err)
	}
	h.T.Cleanup(func() { c.Close() })
	return c
}

// CRI is a connection to the host's CRI from outside.
func (h *Host) CRI() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///cri", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.Path(Socket))
		}))
}

// ImageStatus asks CRI as the kubelet does; nil where it does not know ref.
func (h *Host) ImageStatus(ref string) (*runtime.Image, error) {
	conn, err := h.CRI()
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

// ImportImage does what people do: ctr images import on one host.
func (h *Host) ImportImage(spec ImageSpec) {
	h.T.Helper()
	archive := NewImage(h.T, spec).DockerArchive(h.T, h.Net.Dir)
	h.Ctr("images", "import", archive)
	if err := os.Remove(archive); err != nil { // an hour of builds would fill a disk
		h.T.Error(err)
	}
}

// RunContainer starts a container from ref and returns what it printed.
func (h *Host) RunContainer(ref string) string {
	h.T.Helper()
	name := "c" + strconv.FormatInt(time.Now().UnixNano(), 36)
	log := "/run/" + name + ".log"
	// The shim writes the log and ends it before the container is deleted. ctr's own pipes
	// lose what it has not read when the container ends: it cancels them first.
	h.Ctr("run", "--rm", "--log-uri", "file://"+log, ref, name)
	return strings.TrimSpace(h.Sh("cat " + log + " && rm " + log))
}

// dump prints what helps to understand a failure.
func (h *Host) dump() {
	h.T.Logf("--- %s (%s, containerd %s)", h.Name, h.Address, h.Version)
	if h.Seeder != nil {
		h.T.Logf("seeder:\n%s", h.Seeder.Log.Tail(40))
		for _, what := range []string{"images", "members"} {
			var out json.RawMessage
			if err := h.Try(&out, what); err != nil {
				out = json.RawMessage(err.Error())
			}
			h.T.Logf("%s: %s", what, out)
		}
	}
	if h.Containerd != nil {
		h.T.Logf("containerd:\n%s", h.Containerd.Log.Tail(8))
	}
}

// Sh runs a script on the host.
func (h *Host) Sh(script string) string {
	h.T.Helper()
	return Run(h.T, h.In(h.T.Context(), "sh", "-c", script))
}

// Target is what a reference stands for in the host's containerd; "" for nothing.
func (h *Host) Target(ref string) digest.Digest {
	h.T.Helper()
	img, err := h.Client().ImageService().Get(h.T.Context(), ref)
	if err != nil {
		return ""
	}
	return img.Target.Digest
}
