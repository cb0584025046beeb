package pods

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// kubectls are what to run, the first that is installed. The client library would do, too,
// and cost the daemon, which is the same program, 5 MiB of memory.
var kubectls = [][]string{{"k3s", "kubectl"}, {"/var/lib/rancher/rke2/bin/kubectl"}, {"kubectl"}}

// Kubectl is what to run, or why there is nothing.
func Kubectl() (command []string, why string) {
	for _, k := range kubectls {
		if path, err := exec.LookPath(k[0]); err == nil {
			return append([]string{path}, k[1:]...), ""
		}
	}
	return nil, "kubectl is missing: neither k3s nor rke2 nor kubectl is installed here"
}

// ByKubectl asks the cluster of a kubeconfig, for at most timeout.
func ByKubectl(ctx context.Context, kubectl []string, conf string, timeout time.Duration) (out []Waiting, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := append(slices.Clone(kubectl[1:]), "--kubeconfig", conf, "get", "pods", "--all-namespaces", "-o", "json",
		"--field-selector", "status.phase!=Succeeded,status.phase!=Failed", "--request-timeout", (timeout - time.Second).String())
	cmd := exec.CommandContext(ctx, kubectl[0], args...)
	cmd.WaitDelay = time.Second
	stderr := &tail{}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = decode(io.LimitReader(stdout, maxBytes), func(p pod) { out = append(out, p.waiting()...) })
	if err != nil {
		cancel() // it may have more to say than is read
	}
	if werr := cmd.Wait(); werr != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(kubectl, " "), werr, lastLine(stderr.String()))
	}
	return out, err
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// tail keeps the last of what is written to it.
type tail struct{ bytes.Buffer }

const maxTailBytes = 500

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.Buffer.Write(p[max(0, n-maxTailBytes):])
	t.Next(max(0, t.Len()-maxTailBytes))
	return n, nil
}
