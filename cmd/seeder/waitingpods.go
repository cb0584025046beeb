package main

import (
	"context"
	"fmt"
	"io"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/pods"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// maxSaidPods is how many pods announce names; doctor names more.
const maxSaidPods = 5

// sayPods says after an announcement which pods still wait for an image, and what makes them
// start, where this host may ask the API server. That it may not, or has no answer, is no
// concern of the announcement.
func sayPods(ctx context.Context, env *cli.Env, c *control.Client, w io.Writer) {
	path, _ := pods.Find("/", env.LookupEnv)
	if path == "" {
		return
	}
	list, err := pods.Ask(ctx, path)
	if err != nil || len(list) == 0 {
		return
	}
	var images report.Images
	if c.Get(ctx, "/v1/images", nil, &images) != nil {
		return
	}
	for _, p := range list[:min(len(list), maxSaidPods)] {
		detail, fix := p.Advice(images.Images)
		on := ""
		if p.Node != "" {
			on = " on " + p.Node
		}
		fmt.Fprintln(w, term.Clean(fmt.Sprintf("pod %s/%s%s waits for %s (%s): it %s; %s", p.Namespace, p.Name, on, p.Image, p.Reason, detail, fix)))
	}
	if more := len(list) - maxSaidPods; more > 0 {
		fmt.Fprintf(w, "and %s: seeder doctor\n", term.Plural(more, "more pod"))
	}
}
