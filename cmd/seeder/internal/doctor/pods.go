package doctor

import (
	"context"
	"fmt"
	"os"
	"time"

	"seeder/cmd/seeder/internal/pods"
)

const (
	// kubectlTimeout bounds the question to the API server; a few seconds are left of a
	// check's time to find out where the images are.
	kubectlTimeout = 7 * time.Second
	// maxPods is how many pods are named.
	maxPods = 50
)

// checkPods looks for pods that wait for an image.
func (e *exam) checkPods(ctx context.Context) []finding {
	conf, kubectl, why := e.findKubectl()
	if why != "" {
		return one(finding{Name: "pods", State: StateSkipped, Detail: why})
	}
	waiting, err := pods.ByKubectl(ctx, kubectl, conf, kubectlTimeout)
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
		node := w.Node
		if node == "" {
			node = "a node"
		}
		out = append(out, finding{Name: "pods", State: stateProblem, Subject: w.Namespace + "/" + w.Name,
			Detail: fmt.Sprintf("%s on %s: image %s %s", w.Reason, node, w.Image, detail), Fix: fix})
	}
	if more := len(waiting) - maxPods; more > 0 {
		out = append(out, finding{Name: "pods", State: stateProblem, Detail: fmt.Sprintf("and %d more pods wait for an image", more), Fix: "fix these first"})
	}
	return out
}

// findKubectl is the kubeconfig and the command to use, or why there is none.
func (e *exam) findKubectl() (conf string, kubectl []string, why string) {
	if conf = e.kubeconfig; conf == "" {
		if conf, why = pods.Find(e.root, e.env.LookupEnv); conf == "" {
			return "", nil, why + "; k3s servers have one, or name one with --kubeconfig"
		}
	} else if f, err := os.Open(conf); err != nil {
		return "", nil, "--kubeconfig " + conf + " cannot be read"
	} else {
		f.Close()
	}
	kubectl, why = pods.Kubectl()
	return conf, kubectl, why
}
