package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
)

const (
	Secret = "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA" // as generated

	// ShortName is the reference that most tests announce, as people type it.
	ShortName = "k3s-dashboard:latest"
	// FullName is ShortName as CRI and containerd have it.
	FullName = "docker.io/library/k3s-dashboard:latest"
)

// NewCluster is hosts with containerd and seeder running, which know each other.
func NewCluster(t *testing.T, version string, hosts int, rate string) *Network {
	t.Helper()
	n := NewNetwork(t, rate)
	for range hosts {
		h := n.AddHost(version)
		h.StartContainerd()
		h.StartSeeder()
	}
	n.Hosts[0].AwaitMembers(hosts)
	return n
}

// StartSeeder starts the daemon with nothing but a secret and a join address.
func (h *Host) StartSeeder(env ...string) {
	h.T.Helper()
	h.Write("/etc/seeder/secret", Secret+"\n", 0o600)
	h.StartSeederRaw(env...)
	Eventually(h.T, 20*time.Second, "the daemon answers on "+h.Name, func() error {
		select {
		case <-h.Seeder.Done:
			h.T.Fatalf("seeder ended on %s:\n%s", h.Name, h.Seeder.Log.Tail(30))
		default:
		}
		return h.Try(nil, "status")
	})
}

// StartSeederRaw starts the daemon with the secret that is there or none, and
// waits for nothing. The hosts join the first; env comes last and wins.
func (h *Host) StartSeederRaw(env ...string) {
	h.T.Helper()
	if h != h.Net.Hosts[0] {
		env = append([]string{"SEEDER_GOSSIP_JOIN=" + h.Net.Hosts[0].Address}, env...)
	}
	program := h.Net.Program
	if program == "" {
		program = SeederBin(h.T)
	}
	h.Seeder = h.Start(env, program, "daemon")
}

// cli is the command line's program.
func (h *Host) cli() string {
	if h.Program != "" {
		return h.Program
	}
	return SeederBin(h.T)
}

// SeederBin is bin/seeder, which `make build` makes.
func SeederBin(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs("../../bin/seeder")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Run runs the command line on the host and returns what it printed.
func (h *Host) Run(args ...string) string {
	h.T.Helper()
	return h.RunWithin(2*time.Minute, args...)
}

// RunWithin is run for what may take longer.
func (h *Host) RunWithin(most time.Duration, args ...string) string {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(h.T.Context(), most)
	defer cancel()
	return Run(h.T, h.In(ctx, append([]string{h.cli()}, args...)...))
}

// Try runs the command line; out, where it is not nil, receives its JSON.
func (h *Host) Try(out any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out != nil {
		args = append(args, "-o", "json")
	}
	cmd := h.In(ctx, append([]string{h.cli()}, args...)...)
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

// ExitCode is that of a command whose error Try returned.
func ExitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

// States are the cells of the row of ref in the matrix that h sees, by host.
func (h *Host) States(ref string) (map[string]report.NodeState, error) {
	img, err := h.Image(ref)
	if err != nil {
		return nil, err
	}
	cells := map[string]report.NodeState{}
	for _, n := range img.Nodes {
		cells[n.Name] = n
	}
	return cells, nil
}

// Image is the row of ref in the matrix that h sees.
func (h *Host) Image(ref string) (report.ImageState, error) {
	var out report.Images
	if err := h.Try(&out, "images", ref); err != nil {
		return report.ImageState{}, err
	}
	if len(out.Images) != 1 {
		return report.ImageState{}, fmt.Errorf("%d images", len(out.Images))
	}
	return out.Images[0], nil
}

// InState waits until h says of another host (or itself) that it is in a state
// for the image, with a reason that holds a text.
func (h *Host) InState(of *Host, want report.State, reason string) {
	h.T.Helper()
	Eventually(h.T, 60*time.Second, fmt.Sprintf("%s says that %s is %s", h.Name, of.Name, want), func() error {
		cells, err := h.States(ShortName)
		if err != nil {
			return err
		}
		if c := cells[of.Name]; c.State != want || !strings.Contains(c.Reason, reason) {
			return fmt.Errorf("%s: %q", c.State, c.Reason)
		}
		return nil
	})
}

// Ready waits until seeder says that the host has the image, and the host's own
// CRI answers for it; a container from it prints says.
func (h *Host) Ready(says string) {
	h.T.Helper()
	h.InState(h, report.Ready, "")
	img, err := h.ImageStatus(FullName)
	if err != nil || img == nil {
		h.T.Fatalf("%s is ready on %s, but CRI says %v, %v", FullName, h.Name, img, err)
	}
	if got := h.RunContainer(FullName); got != says {
		h.T.Fatalf("a container from %s on %s prints %q, want %q", FullName, h.Name, got, says)
	}
}

// AwaitMembers waits until h sees n alive members.
func (h *Host) AwaitMembers(n int) {
	h.T.Helper()
	Eventually(h.T, 30*time.Second, fmt.Sprintf("%d members alive on %s", n, h.Name), func() error {
		var out report.Members
		if err := h.Try(&out, "members"); err != nil {
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

// Metric reads a counter of the host's seeder, all label values together.
func (h *Host) Metric(name string) float64 {
	h.T.Helper()
	out := Run(h.T, h.In(h.T.Context(), "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7952/metrics"))
	var sum float64
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
			if err != nil {
				h.T.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// StoreNode is the environment of a node without containerd.
const StoreNode = "SEEDER_CONTAINERD_ADDRESS=embedded"

// MemberState is what h says of another member.
func (h *Host) MemberState(of *Host) string {
	var out report.Members
	if err := h.Try(&out, "members"); err != nil {
		return err.Error()
	}
	for _, m := range out.Members {
		if m.Name == of.Name {
			return m.State
		}
	}
	return "unknown"
}
