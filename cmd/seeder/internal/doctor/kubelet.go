package doctor

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"seeder/cmd/seeder/internal/kubelet"
)

// checkKubelet looks for pulls of this host's kubelet that never ended: it refuses their
// images for pods that must not pull, though they are here.
func (e *exam) checkKubelet(ctx context.Context) []finding {
	intents, err := kubelet.Intents(e.root, time.Now())
	if errors.Is(err, fs.ErrPermission) {
		return one(needsRoot("kubelet", ""))
	}
	if err != nil {
		return one(finding{Name: "kubelet", State: StateSkipped, Detail: err.Error()})
	}
	if len(intents) == 0 {
		return one(finding{Name: "kubelet", State: StateOK, Detail: "no pull was left unfinished"})
	}
	c, cerr := e.containerd(ctx)
	var out []finding
	for _, i := range intents {
		f := finding{Name: "kubelet", State: StateWarning, Subject: i.Image, Detail: i.Why(), Fix: i.Fix}
		if cerr == nil {
			if _, err := c.Images.Resolve(ctx, i.Reference); err == nil {
				f.State, f.Detail = stateProblem, "the image is here, but "+i.Why()
			}
		}
		out = append(out, f)
	}
	return out
}
