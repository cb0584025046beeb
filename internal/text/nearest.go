package text

import (
	"cmp"
	"slices"

	"github.com/agext/levenshtein"
)

// Distance is how many characters have to be typed anew to make b of a.
func Distance(a, b string) int { return levenshtein.Distance(a, b, nil) }

// Nearest are at most n of names, those of the least distance first, of one distance in
// order, without those that are farther than most.
func Nearest(names []string, n, most int, distance func(name string) int) []string {
	type far struct {
		name string
		by   int
	}
	var list []far
	for _, name := range names {
		if d := distance(name); d <= most {
			list = append(list, far{name, d})
		}
	}
	slices.SortFunc(list, func(a, b far) int { return cmp.Or(a.by-b.by, cmp.Compare(a.name, b.name)) })
	var out []string
	for _, f := range list[:min(n, len(list))] {
		out = append(out, f.name)
	}
	return out
}
