//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/pods"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// maxSaidPods is how many pods announce names; doctor, and announce to programs, name more.
const maxSaidPods = 5

// tellPods tells after an announcement which pods still wait for an image, and what makes
// them start: programs before the end of what f shows, people by the function that it returns.
func tellPods(ctx context.Context, env *cli.Env, c *control.Client, f *show.Follower, json bool) (say func()) {
	list := func() []pods.Told {
		return pods.Tell(ctx, env.LookupEnv, func() (images report.Images, err error) {
			err = c.Get(ctx, "/v1/images", nil, &images)
			return images, err
		})
	}
	if json {
		f.Last = func() (out []control.Event) {
			e := control.Event{Event: control.EventPods, Time: time.Now().UTC()}
			for _, p := range list() {
				e.Pods = append(e.Pods, control.WaitingPod{Namespace: p.Namespace, Name: p.Name, Node: p.Node,
					Image: p.Image, Reason: p.Reason, Detail: p.Detail, Fix: p.Fix})
			}
			if len(e.Pods) > 0 {
				out = append(out, e)
			}
			return out
		}
		return func() {}
	}
	return func() {
		told := list()
		for _, p := range told[:min(len(told), maxSaidPods)] {
			on := ""
			if p.Node != "" {
				on = " on " + p.Node
			}
			fmt.Fprintln(env.Stdout, term.Clean(fmt.Sprintf("pod %s/%s%s waits for %s (%s): it %s; %s", p.Namespace, p.Name, on, p.Image, p.Reason, p.Detail, p.Fix)))
		}
		if more := len(told) - maxSaidPods; more > 0 {
			fmt.Fprintf(env.Stdout, "and %s: seeder doctor\n", term.Plural(more, "more pod"))
		}
	}
}
