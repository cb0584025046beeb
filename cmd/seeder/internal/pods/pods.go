// Package pods finds the pods of a cluster that wait for an image, by the API server that a
// kubeconfig of this host leads to.
//
// It owns which pods those are and how they are asked for: `seeder doctor` runs kubectl;
// `announce`, and the daemon, which must neither start a program nor take its memory, ask by
// themselves. It only ever reads.
//
// Invariant: what the API server answers is bounded, and asking it ends in time.
package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p/report"
)

// maxBytes bounds the answer of an API server: some 20,000 pods.
const maxBytes = 512 << 20

// Kubeconfigs are where one may be, below the root of the file system.
var Kubeconfigs = []string{"/etc/rancher/k3s/k3s.yaml", "/etc/rancher/rke2/rke2.yaml", "/etc/kubernetes/admin.conf"}

// Find is the first kubeconfig that can be read, among those of this host and, where env is
// not nil, those that it names; why says why there is none.
func Find(root string, env func(string) (string, bool)) (path, why string) {
	var places []string
	if env != nil {
		if list, ok := env("KUBECONFIG"); ok && list != "" {
			places = append(places, filepath.SplitList(list)...)
		}
	}
	for _, p := range Kubeconfigs {
		places = append(places, filepath.Join(root, p))
	}
	if env != nil {
		if home, ok := env("HOME"); ok {
			places = append(places, filepath.Join(home, ".kube/config"))
		}
	}
	for _, p := range places {
		if readable(p) {
			return p, ""
		}
	}
	return "", "no kubeconfig can be read here (" + strings.Join(places, ", ") + ")"
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// Waiting is a container of a pod that waits for its image.
type Waiting struct {
	Namespace, Name, Node string // Node: "" where none is chosen
	Image, Policy, Reason string // as the pod and its status have them
}

// Reference is the image, normalised; "" for what is not a reference.
func (w Waiting) Reference() string {
	ref, err := cli.NormalizeRef(w.Image)
	if err != nil {
		return ""
	}
	return ref
}

// Row is the row of the matrix that the pod waits for: that of its reference, or one that
// has the digest which the pod names.
func (w Waiting) Row(rows []report.ImageState) (report.ImageState, bool) {
	ref := w.Reference()
	_, digest, byDigest := strings.Cut(ref, "@")
	for _, r := range rows {
		if r.State == "announced" && ref != "" && (r.Reference == ref || byDigest && r.Digest == digest) {
			return r, true
		}
	}
	return report.ImageState{}, false
}

// Explain says how it is with an image that is announced, as a clause about it, and what
// makes the pod start. Where looked is not set nobody has read what the kubelet of the pod's
// host notes of its pulls.
func (w Waiting) Explain(row report.ImageState, looked bool) (detail, fix string) {
	short := cli.ShortRef(row.Reference)
	for _, n := range row.Nodes {
		if n.Name != w.Node {
			continue
		}
		switch {
		case n.State == report.Ready && n.Blocked != "":
			why, fix, _ := strings.Cut(n.Blocked, ": ")
			return "is announced and ready there, but " + why, "on " + n.Name + ": " + fix
		case n.State == report.Ready:
			fix = "wait: the kubelet looks again, at the latest after five minutes; `kubectl -n " + w.Namespace + " delete pod " + w.Name + "` makes a new one try at once"
			if !looked && w.Policy != "Always" {
				fix += "; if that one waits, too, `seeder doctor` on " + n.Name + " says whether its kubelet starts the image by another name alone"
			}
			return "is announced, and ready there", fix
		}
		return fmt.Sprintf("is announced, but %s there: %s", n.State, n.Reason), fmt.Sprintf("seeder wait %s; on %s `seeder doctor` says what holds it up", short, n.Name)
	}
	return "is announced", "seeder images " + short
}

// AlwaysFix begins the fix of a pod whose policy is Always.
const AlwaysFix = "set imagePullPolicy: IfNotPresent (or Never) for it, or have containerd ask seeder first (registry.bind and `seeder registry setup`), and: "

// Advice says how it is with the image that the pod waits for, and what makes the pod start.
func (w Waiting) Advice(rows []report.ImageState) (detail, fix string) {
	ref := w.Reference()
	row, ok := w.Row(rows)
	switch {
	case ref == "":
		return "is not a valid image name", "correct it in the pod's template"
	case ok:
		detail, fix = w.Explain(row, false)
	default:
		detail, fix = "is not announced", "seeder announce "+cli.ShortRef(ref)+"  # on a host that has it"
	}
	if w.Policy == "Always" {
		detail += "; its imagePullPolicy is Always, which asks a registry even if the host has the image"
		fix = AlwaysFix + fix
	}
	return detail, fix
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

func (p pod) waiting() []Waiting {
	var out []Waiting
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers, p.Spec.EphemeralContainers)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if s.State.Waiting == nil || !slices.Contains(imageReasons, s.State.Waiting.Reason) {
			continue
		}
		for _, c := range containers {
			if c.Name == s.Name {
				out = append(out, Waiting{Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, Node: p.Spec.NodeName,
					Image: c.Image, Policy: c.ImagePullPolicy, Reason: s.State.Waiting.Reason})
				break
			}
		}
	}
	return out
}

// decode reads a list of pods, one at a time: a large cluster's are many
// megabytes.
func decode(r io.Reader, fn func(pod)) error {
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
