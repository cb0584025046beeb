// Package test runs seeder on real hosts: each has its own network, mount, pid
// and host name space, its own /etc, /run and /var/lib, its own containerd, and a
// link that is shaped in both directions. It needs root, iproute2, util-linux,
// runc and the containerds that `make test` builds.
//
// A host is one process (the first of a pid namespace) and a directory: ending
// the one and removing the other leaves nothing behind.
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
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"seeder/p2p"
)

const (
	sockPath = "/run/k3s/containerd/containerd.sock"
	secret   = "a secret that the hosts of this test share"
)

// containerds are the versions to test with, by name: where their programs are.
var containerds = map[string]string{
	"1.6": "/usr/bin", // Debian's
	"1.7": "../bin/containerd-1.7",
	"2":   "../bin/containerd-2",
}

// newest is the version that tests use which are not about versions.
const newest = "2"

// network is a switch with hosts on it.
type network struct {
	t        *testing.T
	dir      string
	rate     string // of each link in both directions, e.g. 200mbit; "" for unshaped
	switched *space
	hosts    []*host
}

// space is a set of namespaces, held by one process.
type space struct {
	cmd *exec.Cmd
	pid int // of the process inside
}

// newNetwork makes a switch; everything ends with the test.
func newNetwork(t *testing.T, rate string) *network {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "seeder-hosts-")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, dir: dir, rate: rate}
	t.Cleanup(n.close)
	n.switched = n.newSpace("switch", "ip link set lo up && ip link add br0 type bridge && ip link set br0 up")
	return n
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("real hosts are namespaces and need root; run `make test` as root")
	}
}

// newSpace starts a process in new namespaces that runs setup and then sleeps.
func (n *network) newSpace(name, setup string) *space {
	n.t.Helper()
	ready := filepath.Join(n.dir, name+".ready")
	script := fmt.Sprintf("set -e\n%s\ntouch %s\nexec sleep 86400", setup, ready)
	cmd := exec.Command("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL",
		"--propagation", "private", "--mount-proc", "sh", "-c", script)
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatalf("make host %s: %v", name, err)
	}
	s := &space{cmd: cmd}
	n.t.Cleanup(func() { s.end() })
	eventually(n.t, 10*time.Second, "host "+name+" is set up", func() error {
		if _, err := os.Stat(ready); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	})
	s.pid = childOf(n.t, cmd.Process.Pid)
	return s
}

// end kills the first process of the pid namespace, and the kernel the rest.
func (s *space) end() {
	if s.pid != 0 {
		syscall.Kill(s.pid, syscall.SIGKILL)
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// childOf is the one child of a process.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	var child int
	eventually(t, 5*time.Second, "the process has a child", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return err
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err
	})
	return child
}

// in is a command inside the namespaces.
func (s *space) in(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(s.pid), "-a", "--"}, args...)...)
}

func (n *network) close() {
	if n.t.Failed() {
		for _, h := range n.hosts {
			h.dump()
		}
	}
	for _, h := range n.hosts {
		h.end()
	}
	if n.switched != nil {
		n.switched.end()
	}
	var err error
	for range 50 { // the kernel unmounts after the last process of a namespace is gone
		if err = os.RemoveAll(n.dir); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	n.t.Errorf("left behind: %v", err)
}

// host is one machine of the cluster.
type host struct {
	*space
	t       *testing.T
	net     *network
	name    string
	address string
	dir     string
	version string // of containerd, as in containerds
	bin     string

	containerd *daemon
	seeder     *daemon
}

// addHost plugs a host into the switch.
func (n *network) addHost(version string) *host {
	n.t.Helper()
	i := len(n.hosts) + 1
	h := &host{t: n.t, net: n, name: fmt.Sprintf("h%d", i), address: fmt.Sprintf("10.77.0.%d", i), version: version}
	h.dir = filepath.Join(n.dir, h.name)
	bin, err := filepath.Abs(containerds[version])
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil {
		n.t.Fatalf("containerd %s is not there: %v; `make test` installs and builds it", version, err)
	}
	h.bin = bin
	for _, d := range []string{"etc", "etc.work", "run", "lib"} {
		if err := os.MkdirAll(filepath.Join(h.dir, d), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	h.space = n.newSpace(h.name, fmt.Sprintf(`
mount -t overlay overlay -o lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/etc.work /etc
mount --bind %[1]s/lib /var/lib
mount --bind %[1]s/run /run
hostname %[2]s
ip link set lo up
mkdir -p /etc/seeder /var/lib/rancher/k3s/agent/containerd /run/k3s/containerd`, h.dir, h.name))
	n.plug(h, i)
	n.hosts = append(n.hosts, h)
	return h
}

// plug connects a host by a veth pair, shaped at both ends.
func (n *network) plug(h *host, i int) {
	n.t.Helper()
	ctx, port := n.t.Context(), fmt.Sprintf("p%d", i)
	run(n.t, exec.CommandContext(ctx, "ip", "link", "add", port, "netns", strconv.Itoa(n.switched.pid),
		"type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(h.pid)))
	run(n.t, n.switched.in(ctx, "ip", "link", "set", port, "master", "br0", "up"))
	run(n.t, h.in(ctx, "ip", "addr", "add", h.address+"/24", "dev", "eth0"))
	run(n.t, h.in(ctx, "ip", "link", "set", "eth0", "up"))
	if n.rate != "" {
		shape := []string{"root", "tbf", "rate", n.rate, "burst", "256kb", "latency", "50ms"}
		run(n.t, n.switched.in(ctx, append([]string{"tc", "qdisc", "add", "dev", port}, shape...)...))
		run(n.t, h.in(ctx, append([]string{"tc", "qdisc", "add", "dev", "eth0"}, shape...)...))
	}
}

// lockedBuffer is a buffer that a process writes while a test reads.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tail is the last n lines.
func (b *lockedBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// eventually waits until ok returns nil.
func eventually(t *testing.T, d time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", d, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// daemon is a program that runs on a host.
type daemon struct {
	cmd  *exec.Cmd
	pid  int
	log  *lockedBuffer
	done chan struct{}
}

// start runs a program on the host.
func (h *host) start(env []string, args ...string) *daemon {
	h.t.Helper()
	d := &daemon{log: &lockedBuffer{}, done: make(chan struct{})}
	d.cmd = h.in(context.Background(), args...)
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		h.t.Fatalf("start %v on %s: %v", args, h.name, err)
	}
	d.pid = childOf(h.t, d.cmd.Process.Pid)
	go func() { d.cmd.Wait(); close(d.done) }() // ends with the process, which ends with the host
	return d
}

// stop sends a signal and waits for the end.
func (d *daemon) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	syscall.Kill(d.pid, sig)
	select {
	case <-d.done:
	case <-time.After(15 * time.Second):
		t.Fatalf("process %d does not end after %v; its log ends:\n%s", d.pid, sig, d.log.tail(20))
	}
}

// startContainerd starts the host's containerd as k3s does, and waits for it.
func (h *host) startContainerd() {
	h.t.Helper()
	config := fmt.Sprintf(`version = 2
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"
[grpc]
  address = %q
`, sockPath)
	h.write("/etc/containerd-test.toml", config, 0o644)
	h.containerd = h.start([]string{"PATH=" + h.bin + ":" + os.Getenv("PATH")}, filepath.Join(h.bin, "containerd"), "-c", "/etc/containerd-test.toml")
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

// startSeeder starts the daemon with nothing but a secret and a join address.
func (h *host) startSeeder(env ...string) {
	h.t.Helper()
	h.write("/etc/seeder/secret", secret+"\n", 0o600)
	h.startSeederRaw(env...)
	eventually(h.t, 20*time.Second, "the daemon answers on "+h.name, func() error {
		select {
		case <-h.seeder.done:
			h.t.Fatalf("seeder ended on %s:\n%s", h.name, h.seeder.log.tail(30))
		default:
		}
		return h.try(nil, "status")
	})
}

func (h *host) startSeederRaw(env ...string) {
	h.t.Helper()
	if h != h.net.hosts[0] {
		env = append([]string{"SEEDER_GOSSIP_JOIN=" + h.net.hosts[0].address}, env...)
	}
	h.seeder = h.start(env, seederBin(h.t), "daemon")
}

func seederBin(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs("../bin/seeder")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// path is where the host's file is seen from outside.
func (h *host) path(inside string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, inside) }

func (h *host) write(inside, content string, mode os.FileMode) {
	h.t.Helper()
	if err := os.WriteFile(h.path(inside), []byte(content), mode); err != nil {
		h.t.Fatal(err)
	}
}

// run runs the command line on the host and returns what it printed.
func (h *host) run(args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	return run(h.t, h.in(ctx, append([]string{seederBin(h.t)}, args...)...))
}

// try runs the command line; out, where it is not nil, receives its JSON.
func (h *host) try(out any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out != nil {
		args = append(args, "-o", "json")
	}
	cmd := h.in(ctx, append([]string{seederBin(h.t)}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("seeder %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	if out != nil {
		return json.Unmarshal(stdout.Bytes(), out)
	}
	return nil
}

// ctr runs containerd's own client in the kubelet's namespace.
func (h *host) ctr(args ...string) string {
	h.t.Helper()
	return run(h.t, h.ctrCmd(args...))
}

func (h *host) ctrCmd(args ...string) *exec.Cmd {
	cmd := h.in(h.t.Context(), append([]string{filepath.Join(h.bin, "ctr"), "-a", sockPath, "-n", "k8s.io"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+h.bin+":"+os.Getenv("PATH"))
	return cmd
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

// runContainer starts a container from ref and returns what it printed.
func (h *host) runContainer(ref string) string {
	h.t.Helper()
	cmd := h.ctrCmd("run", "--rm", ref, "c"+strconv.FormatInt(time.Now().UnixNano(), 36))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr // ctr's own warnings
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("run a container from %s on %s: %v\n%s", ref, h.name, err, stderr.String())
	}
	return string(out)
}

// state is the cell of a host in the matrix that h sees.
func (h *host) states(ref string) (map[string]p2p.NodeState, error) {
	var out p2p.Images
	if err := h.try(&out, "images", ref); err != nil {
		return nil, err
	}
	if len(out.Images) != 1 {
		return nil, fmt.Errorf("%d images", len(out.Images))
	}
	cells := map[string]p2p.NodeState{}
	for _, n := range out.Images[0].Nodes {
		cells[n.Name] = n
	}
	return cells, nil
}

// awaitMembers waits until h sees n alive members.
func (h *host) awaitMembers(n int) {
	h.t.Helper()
	eventually(h.t, 30*time.Second, fmt.Sprintf("%d members alive on %s", n, h.name), func() error {
		var out p2p.Members
		if err := h.try(&out, "members"); err != nil {
			return err
		}
		alive := 0
		for _, m := range out.Members {
			if m.State == "alive" {
				alive++
			}
		}
		if alive != n {
			return fmt.Errorf("%d alive: %+v", alive, out.Members)
		}
		return nil
	})
}

// metric reads a counter of the host's seeder, all label values together.
func (h *host) metric(name string) float64 {
	h.t.Helper()
	out := run(h.t, h.in(h.t.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/metrics"))
	var sum float64
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			if err != nil {
				h.t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// dump prints what helps to understand a failure.
func (h *host) dump() {
	h.t.Logf("--- %s (%s, containerd %s)", h.name, h.address, h.version)
	if h.seeder != nil {
		h.t.Logf("seeder:\n%s", h.seeder.log.tail(40))
		var images json.RawMessage
		if err := h.try(&images, "images"); err == nil {
			h.t.Logf("images: %s", images)
		}
	}
	if h.containerd != nil {
		h.t.Logf("containerd:\n%s", h.containerd.log.tail(8))
	}
}
