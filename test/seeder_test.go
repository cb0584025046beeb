package test

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
	secret = "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA" // as generated

	short = "k3s-dashboard:latest"
	full  = "docker.io/library/k3s-dashboard:latest"
)

// cluster is hosts with containerd and seeder running, which know each other.
func cluster(t *testing.T, version string, hosts int, rate string) *network {
	t.Helper()
	n := newNetwork(t, rate)
	for range hosts {
		h := n.addHost(version)
		h.startContainerd()
		h.startSeeder()
	}
	n.hosts[0].awaitMembers(hosts)
	return n
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

// startSeederRaw starts the daemon with the secret that is there or none, and
// waits for nothing. The hosts join the first; env comes last and wins.
func (h *host) startSeederRaw(env ...string) {
	h.t.Helper()
	if h != h.net.hosts[0] {
		env = append([]string{"SEEDER_GOSSIP_JOIN=" + h.net.hosts[0].address}, env...)
	}
	program := h.net.program
	if program == "" {
		program = seederBin(h.t)
	}
	h.seeder = h.start(env, program, "daemon")
}

// cli is the command line's program.
func (h *host) cli() string {
	if h.program != "" {
		return h.program
	}
	return seederBin(h.t)
}

func seederBin(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs("../bin/seeder")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// run runs the command line on the host and returns what it printed.
func (h *host) run(args ...string) string {
	h.t.Helper()
	return h.runWithin(2*time.Minute, args...)
}

// runWithin is run for what may take longer.
func (h *host) runWithin(most time.Duration, args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), most)
	defer cancel()
	return run(h.t, h.in(ctx, append([]string{h.cli()}, args...)...))
}

// try runs the command line; out, where it is not nil, receives its JSON.
func (h *host) try(out any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out != nil {
		args = append(args, "-o", "json")
	}
	cmd := h.in(ctx, append([]string{h.cli()}, args...)...)
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

// exitCode is that of a command whose error try returned.
func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

// states are the cells of the row of ref in the matrix that h sees, by host.
func (h *host) states(ref string) (map[string]report.NodeState, error) {
	img, err := h.image(ref)
	if err != nil {
		return nil, err
	}
	cells := map[string]report.NodeState{}
	for _, n := range img.Nodes {
		cells[n.Name] = n
	}
	return cells, nil
}

// image is the row of ref in the matrix that h sees.
func (h *host) image(ref string) (report.ImageState, error) {
	var out report.Images
	if err := h.try(&out, "images", ref); err != nil {
		return report.ImageState{}, err
	}
	if len(out.Images) != 1 {
		return report.ImageState{}, fmt.Errorf("%d images", len(out.Images))
	}
	return out.Images[0], nil
}

// inState waits until h says of another host (or itself) that it is in a state
// for the image, with a reason that holds a text.
func (h *host) inState(of *host, want report.State, reason string) {
	h.t.Helper()
	eventually(h.t, 60*time.Second, fmt.Sprintf("%s says that %s is %s", h.name, of.name, want), func() error {
		cells, err := h.states(short)
		if err != nil {
			return err
		}
		if c := cells[of.name]; c.State != want || !strings.Contains(c.Reason, reason) {
			return fmt.Errorf("%s: %q", c.State, c.Reason)
		}
		return nil
	})
}

// ready waits until seeder says that the host has the image, and the host's own
// CRI answers for it; a container from it prints says.
func (h *host) ready(says string) {
	h.t.Helper()
	h.inState(h, report.Ready, "")
	img, err := h.imageStatus(full)
	if err != nil || img == nil {
		h.t.Fatalf("%s is ready on %s, but CRI says %v, %v", full, h.name, img, err)
	}
	if got := h.runContainer(full); got != says {
		h.t.Fatalf("a container from %s on %s prints %q, want %q", full, h.name, got, says)
	}
}

// awaitMembers waits until h sees n alive members.
func (h *host) awaitMembers(n int) {
	h.t.Helper()
	eventually(h.t, 30*time.Second, fmt.Sprintf("%d members alive on %s", n, h.name), func() error {
		var out report.Members
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
