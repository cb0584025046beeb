package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// kubectlTimeout bounds the question to the API server; a few seconds are left of a
	// check's time to find out where the images are.
	kubectlTimeout = 7 * time.Second
	// maxPodsBytes bounds its answer: some 20,000 pods.
	maxPodsBytes = 512 << 20
	// maxPods is how many pods are named.
	maxPods = 50
)

// kubeconfigs are where one may be, below root; kubectls what to run with it. The
// client library would do, too, and cost the daemon, which is the same program,
// 5 MiB of memory.
var (
	kubeconfigs = []string{"/etc/rancher/k3s/k3s.yaml", "/etc/rancher/rke2/rke2.yaml", "/etc/kubernetes/admin.conf"}
	kubectls    = [][]string{{"k3s", "kubectl"}, {"/var/lib/rancher/rke2/bin/kubectl"}, {"kubectl"}}
)

// waitingPod is a container of a pod that waits for its image.
type waitingPod struct {
	namespace, name, node string
	image, policy, reason string
}

// pod is what is read of one, as the API writes it.
type pod struct {
	Metadata struct{ Namespace, Name string }
	Spec     struct {
		NodeName                                        string
		InitContainers, Containers, EphemeralContainers []struct{ Name, Image, ImagePullPolicy string }
	}
	Status struct {
		InitContainerStatuses, ContainerStatuses, EphemeralContainerStatuses []struct {
			Name  string
			State struct{ Waiting *struct{ Reason string } }
		}
	}
}

// imageReasons are those of a container that waits for its image. The last two take
// turns.
var imageReasons = []string{"ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff"}

func (p pod) waiting() []waitingPod {
	var out []waitingPod
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers, p.Spec.EphemeralContainers)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if s.State.Waiting == nil || !slices.Contains(imageReasons, s.State.Waiting.Reason) {
			continue
		}
		for _, c := range containers {
			if c.Name == s.Name {
				out = append(out, waitingPod{namespace: p.Metadata.Namespace, name: p.Metadata.Name, node: p.Spec.NodeName,
					image: c.Image, policy: c.ImagePullPolicy, reason: s.State.Waiting.Reason})
				break
			}
		}
	}
	return out
}

// checkPods looks for pods that wait for an image.
func (e *exam) checkPods(ctx context.Context) []finding {
	conf, kubectl, why := e.findKubectl()
	if why != "" {
		return one(finding{Name: "pods", State: StateSkipped, Detail: why})
	}
	waiting, err := e.waitingPods(ctx, conf, kubectl)
	if err != nil {
		return one(finding{Name: "pods", State: StateSkipped, Subject: conf, Detail: "the cluster does not say: " + err.Error()})
	}
	if len(waiting) == 0 {
		return one(finding{Name: "pods", State: StateOK, Detail: "none waits for an image"})
	}
	m := e.newImageFinder(ctx, waiting)
	var out []finding
	for _, w := range waiting[:min(len(waiting), maxPods)] {
		detail, fix := m.fix(w)
		node := w.node
		if node == "" {
			node = "a node"
		}
		out = append(out, finding{Name: "pods", State: stateProblem, Subject: w.namespace + "/" + w.name,
			Detail: fmt.Sprintf("%s on %s: image %s %s", w.reason, node, w.image, detail), Fix: fix})
	}
	if more := len(waiting) - maxPods; more > 0 {
		out = append(out, finding{Name: "pods", State: stateProblem, Detail: fmt.Sprintf("and %d more pods wait for an image", more), Fix: "fix these first"})
	}
	return out
}

// findKubectl is the kubeconfig and the command to use, or why there is none.
func (e *exam) findKubectl() (conf string, kubectl []string, why string) {
	var places []string
	if e.kubeconfig != "" {
		places = []string{e.kubeconfig}
	} else {
		if env, ok := e.env.LookupEnv("KUBECONFIG"); ok && env != "" {
			places = append(places, filepath.SplitList(env)...)
		}
		for _, p := range kubeconfigs {
			places = append(places, filepath.Join(e.root, p))
		}
		if home, ok := e.env.LookupEnv("HOME"); ok {
			places = append(places, filepath.Join(home, ".kube/config"))
		}
	}
	for _, p := range places {
		f, err := os.Open(p)
		if err == nil {
			f.Close()
			conf = p
			break
		}
	}
	if conf == "" {
		if e.kubeconfig != "" {
			return "", nil, "--kubeconfig " + e.kubeconfig + " cannot be read"
		}
		return "", nil, "no kubeconfig can be read here (" + strings.Join(places, ", ") + "); k3s servers have one, or name one with --kubeconfig"
	}
	for _, k := range kubectls {
		if path, err := exec.LookPath(k[0]); err == nil {
			return conf, append([]string{path}, k[1:]...), ""
		}
	}
	return "", nil, "kubectl is missing: neither k3s nor rke2 nor kubectl is installed here"
}

// waitingPods asks the cluster.
func (e *exam) waitingPods(ctx context.Context, conf string, kubectl []string) (out []waitingPod, err error) {
	ctx, cancel := context.WithTimeout(ctx, kubectlTimeout)
	defer cancel()
	args := append(slices.Clone(kubectl[1:]), "--kubeconfig", conf, "get", "pods", "--all-namespaces", "-o", "json",
		"--field-selector", "status.phase!=Succeeded,status.phase!=Failed", "--request-timeout", (kubectlTimeout - time.Second).String())
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
	err = decodePods(io.LimitReader(stdout, maxPodsBytes), func(p pod) { out = append(out, p.waiting()...) })
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

// decodePods reads a list of pods, one at a time: a large cluster's are many
// megabytes.
func decodePods(r io.Reader, fn func(pod)) error {
	dec := json.NewDecoder(r)
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("the list of pods is not a JSON object"), err)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return fmt.Errorf("the list of pods: %w", err)
		}
		if key != "items" {
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return fmt.Errorf("the list of pods: %w", err)
			}
			continue
		}
		if t, err := dec.Token(); err != nil || t != json.Delim('[') {
			return errors.Join(errors.New("the list of pods has no items"), err)
		}
		for dec.More() {
			var p pod
			if err := dec.Decode(&p); err != nil {
				return fmt.Errorf("the list of pods: %w", err)
			}
			fn(p)
		}
		if _, err := dec.Token(); err != nil {
			return fmt.Errorf("the list of pods: %w", err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("the list of pods: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.Join(errors.New("something follows the list of pods"), err)
	}
	return nil
}
