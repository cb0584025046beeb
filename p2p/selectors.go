package p2p

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"seeder/p2p/catalog"
)

// NoNodeError says that label selectors match no node that answers.
type NoNodeError struct {
	On     []string
	Labels []string // that the nodes have, as key=value
}

func (e *NoNodeError) Error() string {
	has := "no node has a label (`labels` in its configuration)"
	if len(e.Labels) > 0 {
		has = "the nodes have " + strings.Join(e.Labels, ", ")
	}
	return fmt.Sprintf("--on %s matches no node that is there; %s", strings.Join(e.On, " --on "), has)
}

// CheckOn asks the members for their labels: an error where a selector is none, and
// a *NoNodeError where none of them is meant.
func (n *Node) CheckOn(ctx context.Context, on []string) error {
	var errs []error
	for _, s := range on {
		errs = append(errs, catalog.CheckSelector(s))
	}
	if err := errors.Join(errs...); err != nil || len(on) == 0 {
		return err
	}
	known := map[string]bool{}
	for _, a := range n.ask(ctx, []string{noImage}) { // no image: the labels are enough
		if a.err != nil {
			continue
		}
		if catalog.LeftOut(on, a.labels) == "" {
			return nil
		}
		for k, v := range a.labels {
			known[k+"="+v] = true
		}
	}
	return &NoNodeError{On: on, Labels: slices.Sorted(maps.Keys(known))}
}
