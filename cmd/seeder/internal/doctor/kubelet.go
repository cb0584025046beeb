package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/kubelet"
	"seeder/p2p/report"
	"seeder/store/ctrd"
)

// maxLimited is how many images are named that the kubelet starts by some names alone.
const maxLimited = 3

// checkKubelet looks for what this host's kubelet has noted of its pulls. It refuses images
// for pods that must not pull, though they are here: those of a pull that never ended, and
// those that it has pulled itself, for pods that write another name.
func (e *exam) checkKubelet(ctx context.Context) []finding {
	intents, err := kubelet.Intents(e.root, time.Now())
	var records map[string]kubelet.Record
	if err == nil {
		records, err = kubelet.Records(e.root)
	}
	if errors.Is(err, fs.ErrPermission) {
		return one(needsRoot("kubelet", ""))
	}
	if err != nil {
		return one(finding{Name: "kubelet", State: StateSkipped, Detail: err.Error()})
	}
	c, err := e.containerd(ctx)
	if err != nil {
		c = nil // checkContainerd says why
	}
	var refs []string
	if _, err := e.ask(ctx); err == nil && len(records) > 0 {
		refs = readyHere(ctx, e.client, e.config(ctx).NodeName)
	}
	found, limits := pulledFindings(pulledOf(ctx, c, records, refs))
	out := append(unfinished(ctx, c, intents), found...)
	if len(out) == 0 {
		out = one(finding{Name: "kubelet", State: StateOK, Detail: "no pull was left unfinished" + limits})
	}
	return out
}

// unfinished are the findings for pulls that never ended; c may be nil.
func unfinished(ctx context.Context, c *ctrd.Containerd, intents []kubelet.Intent) (out []finding) {
	for _, i := range intents {
		f := finding{Name: "kubelet", State: StateWarning, Subject: i.Image, Detail: i.Why(), Fix: i.Fix}
		if c != nil {
			if _, err := c.Images.Resolve(ctx, i.Reference); err == nil {
				f.State, f.Detail = stateProblem, "the image is here, but "+i.Why()
			}
		}
		out = append(out, f)
	}
	return out
}

// readyHere are the references of announced images that are ready on the host.
func readyHere(ctx context.Context, daemon *control.Client, host string) (refs []string) {
	var images report.Images
	if daemon.Get(ctx, "/v1/images", nil, &images) != nil {
		return nil
	}
	for _, img := range images.Images {
		if img.State == "announced" && readyOn(img, host) {
			refs = append(refs, img.Reference)
		}
	}
	return refs
}

func readyOn(img report.ImageState, host string) bool {
	return slices.ContainsFunc(img.Nodes, func(n report.NodeState) bool { return n.Name == host && n.State == report.Ready })
}

// pulledOf are the kubelet's records of images, by reference: of those that it has pulled
// itself. CRI says which image a reference is; where it does not answer, or c is nil, there
// are none.
func pulledOf(ctx context.Context, c *ctrd.Containerd, records map[string]kubelet.Record, refs []string) map[string]kubelet.Record {
	if c == nil || len(records) == 0 || len(refs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	return byReference(records, refs, func(ref string) (string, error) { return c.Runtime.ImageID(ctx, ref) })
}

func byReference(records map[string]kubelet.Record, refs []string, imageID func(ref string) (string, error)) map[string]kubelet.Record {
	out := map[string]kubelet.Record{}
	for _, ref := range refs {
		id, err := imageID(ref)
		if err != nil {
			break // it will not answer for the others
		}
		if r, ok := records[id]; ok {
			out[ref] = r
		}
	}
	return out
}

// pulledFindings are those for images that no pod may start without another pull; limits
// says of the others by which names pods may.
func pulledFindings(pulled map[string]kubelet.Record) (out []finding, limits string) {
	var limited []string
	for _, ref := range slices.Sorted(maps.Keys(pulled)) {
		r, short := pulled[ref], cli.ShortRef(ref)
		if len(r.Names)+len(r.Bound) > 0 {
			limited = append(limited, short+" "+r.Limits())
			continue
		}
		why, fix := r.Refuses(short)
		out = append(out, finding{Name: "kubelet", State: stateProblem, Subject: short, Detail: "the image is here, but " + why, Fix: fix})
	}
	if len(limited) > 0 {
		limits = "; pods that must not pull may write " + listedBy(limited, maxLimited)
	}
	return out, limits
}

// listedBy names the first of many clauses.
func listedBy(clauses []string, most int) string {
	if len(clauses) <= most {
		return strings.Join(clauses, "; ")
	}
	return fmt.Sprintf("%s; and %d more images by some names alone", strings.Join(clauses[:most], "; "), len(clauses)-most)
}
