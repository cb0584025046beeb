package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
	"seeder/p2p/report"
)

// demoNode is a daemon of the demo: a process of its own.
type demoNode struct {
	name, dir              string
	gossip, transfer, http string // ip:port

	pid  int
	done chan struct{} // closed when the process has ended
	died bool          // ended without being asked to; valid once done is closed
	stop chan struct{} // closed when it has to end
}

func (n *demoNode) socket() string  { return filepath.Join(n.dir, "api.sock") }
func (n *demoNode) logFile() string { return filepath.Join(n.dir, "log") }

// config is the node's configuration file.
func (n *demoNode) config(secret, join string) string {
	if join != "" {
		join = strconv.Quote(join)
	}
	return fmt.Sprintf(`node_name: %s
data_dir: %s
secret_file: %s
gossip: {bind: %q, join: [%s]}
transfer: {bind: %q}
containerd: {address: embedded}
images: {min_free: "0%%"}
api: {socket: %s}
http: {bind: %q}
`, n.name, filepath.Join(n.dir, "data"), secret, n.gossip, join, n.transfer, n.socket(), n.http)
}

// start runs the daemon. The kernel ends it when this process ends, however that
// happens.
func (n *demoNode) start(exe, secret, join string, env []string) error {
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	file := filepath.Join(n.dir, "seeder.yaml")
	if err := os.WriteFile(file, []byte(n.config(secret, join)), 0o600); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	log, err := os.Create(n.logFile())
	if err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	defer log.Close()
	cmd := exec.Command(exe, "daemon", "--config", file)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, log, log
	// An own group: Ctrl-C at the terminal is for the demo, which ends the nodes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	n.done, n.stop = make(chan struct{}), make(chan struct{})
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that started the process ends, so
		// this goroutine keeps its thread as long as the process lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			n.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it ended is in its log
		select {
		case <-n.stop:
		default:
			n.died = true
		}
		close(n.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	return nil
}

// kill ends the node and returns when it has ended.
func (n *demoNode) kill() {
	close(n.stop)
	select {
	case <-n.done:
	default:
		_ = syscall.Kill(n.pid, syscall.SIGKILL)
		<-n.done
	}
}

// waitMembers returns when the node answers and knows count members.
func (n *demoNode) waitMembers(ctx context.Context, count int) error {
	c := control.Dial(n.socket())
	known := "it does not answer"
	for {
		var s report.Status
		err := c.Get(ctx, "/v1/status", nil, &s)
		if err == nil && s.Members >= count && s.Containerd.OK {
			return nil
		}
		if err == nil {
			known = show.StatusLine(s)
		}
		select {
		case <-n.done:
			return fmt.Errorf("%s ended at once", n.name)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s is not ready after %s: %s", n.name, demoStartTimeout, known)
			}
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lastLog is the end of the node's log.
func (n *demoNode) lastLog() string {
	const most = 20
	data, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error() + "\n"
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n") + "\n"
}

// wireBytes asks the node's metrics how many bytes it sent and received.
func (n *demoNode) wireBytes(ctx context.Context) (sent, received float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	samples, err := sumSamples(io.LimitReader(resp.Body, 16<<20), "seeder_wire_sent_bytes_total", "seeder_wire_received_bytes_total")
	if err != nil {
		return 0, 0, err
	}
	return samples[0], samples[1], nil
}

// sumSamples adds up the samples of each named counter, gauge or untyped metric in
// Prometheus' text format.
func sumSamples(r io.Reader, names ...string) ([]float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	sums := make([]float64, len(names))
	for i, name := range names {
		for _, m := range families[name].GetMetric() {
			sums[i] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return sums, nil
}

// Loopback is a port of 127.0.0.1, as ip:port.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// FreePorts finds ports on 127.0.0.1 that nobody uses, tcp and udp, below the
// range from which the kernel takes ports for outgoing connections, so that none
// is taken away before its node listens.
func FreePorts(count int) ([]int, error) {
	const lowest, highest = 20000, 32000
	var ports []int
	for try := 0; try < 50*count && len(ports) < count; try++ {
		port := lowest + rand.IntN(highest-lowest)
		if isFree(port) && !contains(ports, port) {
			ports = append(ports, port)
		}
	}
	if len(ports) < count {
		return nil, fmt.Errorf("find %d free ports between %d and %d on 127.0.0.1", count, lowest, highest)
	}
	return ports, nil
}

func contains(ports []int, port int) bool {
	for _, p := range ports {
		if p == port {
			return true
		}
	}
	return false
}

func isFree(port int) bool {
	tcp, err := net.Listen("tcp", Loopback(port))
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", Loopback(port))
	if err != nil {
		return false
	}
	udp.Close()
	return true
}
