package pods

import (
	"context"

	"seeder/p2p/report"
)

// Told is a pod that waits, and what may be told of it.
type Told struct {
	Waiting
	Detail string // how far the image is
	Fix    string // what makes the pod start
}

// Tell asks the API server of this host's kubeconfig, if there is one, which pods wait, and
// images what is announced. That it may not ask, or has no answer, is nothing to tell.
func Tell(ctx context.Context, env func(string) (string, bool), images func() (report.Images, error)) []Told {
	path, _ := Find("/", env)
	if path == "" {
		return nil
	}
	list, err := Ask(ctx, path)
	if err != nil || len(list) == 0 {
		return nil
	}
	rows, err := images()
	if err != nil {
		return nil
	}
	out := make([]Told, 0, len(list))
	for _, p := range list {
		detail, fix := p.Advice(rows.Images)
		out = append(out, Told{p, detail, fix})
	}
	return out
}
