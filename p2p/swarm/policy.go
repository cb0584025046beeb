package swarm

import (
	"slices"
	"time"
)

// durations keeps the last few durations of one kind, for their median.
type durations struct {
	last [32]time.Duration
	n    int
}

func (d *durations) add(t time.Duration) {
	d.last[d.n%len(d.last)] = t
	d.n++
}

// enough reports whether the median says something.
func (d *durations) enough() bool { return d.n >= 4 }

// median is 0 while nothing was added.
func (d *durations) median() time.Duration {
	k := min(d.n, len(d.last))
	if k == 0 {
		return 0
	}
	s := d.last
	slices.Sort(s[:k])
	return s[k/2]
}
