package text

import (
	"math"
	"slices"
	"testing"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"gossip", "transfer", "labels", "label", "http"}
	to := func(word string) func(string) int { return func(name string) int { return Distance(word, name) } }
	for _, c := range []struct {
		word    string
		n, most int
		want    []string
	}{
		{"labels", 2, math.MaxInt, []string{"labels", "label"}},
		{"labe", 3, 2, []string{"label", "labels"}},
		{"lable", 1, 2, []string{"label"}},
		{"zzzzzzzzzz", 3, 2, nil},
		{"x", 0, math.MaxInt, nil},
	} {
		if got := Nearest(names, c.n, c.most, to(c.word)); !slices.Equal(got, c.want) {
			t.Errorf("%q, %d, %d: %q, want %q", c.word, c.n, c.most, got, c.want)
		}
	}
	if got := Nearest([]string{"b", "a"}, 2, 9, to("c")); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("of one distance: %q", got)
	}
}
