package matrix

import (
	"context"
	"errors"
	"maps"
	"slices"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

// CheckOn asks the members for their labels: an error where a selector is none, and
// a *report.NoNodeError where none of them is meant.
func (m *Matrix) CheckOn(ctx context.Context, on []string) error {
	var errs []error
	for _, s := range on {
		errs = append(errs, catalog.CheckSelector(s))
	}
	if err := errors.Join(errs...); err != nil || len(on) == 0 {
		return err
	}
	known := map[string]bool{}
	for _, a := range m.ask(ctx, []string{noImage}) { // no image: the labels are enough
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
	return &report.NoNodeError{On: on, Labels: slices.Sorted(maps.Keys(known))}
}
