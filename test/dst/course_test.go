package dst

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"
)

// Event is one thing that happens. What its numbers mean is the kind's business; Node
// and Peer are indexes of hosts.
type Event struct {
	At   int64  `json:"at"` // ms since its round began
	Kind string `json:"kind"`
	Node int    `json:"node"`
	Peer int    `json:"peer,omitempty"`
	For  int64  `json:"for,omitempty"` // ms
	Arg  uint64 `json:"arg,omitempty"`
}

func (e Event) String() string {
	return fmt.Sprintf("%6d ms  %-22s node %d, peer %d, for %d ms, arg %d", e.At, e.Kind, e.Node, e.Peer, e.For, e.Arg)
}

// Course is the life of one cluster: rounds of events, after each of which everything
// that was broken is well again and the cluster has to converge.
type Course struct {
	Seed   uint64    `json:"seed"`
	Nodes  int       `json:"nodes"`
	Rounds [][]Event `json:"rounds"`
}

// Events is how many there are.
func (c Course) Events() (n int) {
	for _, r := range c.Rounds {
		n += len(r)
	}
	return n
}

const (
	roundLength = 40 * time.Second
	// faultsPerRound is the mean; a fault lasts up to 20 s.
	faultsPerRound = 140
	// longest is how long a fault lasts at most.
	longest = 20 * time.Second
)

// draw makes the course of a seed. The kinds are drawn by their weights; every sixth
// event is of an operator, so that there is always work that faults can hit.
func draw(seed uint64, rounds int) Course {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := Course{Seed: seed, Nodes: 3 + rng.IntN(3)}
	for range rounds {
		var events []Event
		for range faultsPerRound/2 + rng.IntN(faultsPerRound) {
			events = append(events, drawEvent(rng, c.Nodes, false))
			if rng.IntN(6) == 0 {
				events = append(events, drawEvent(rng, c.Nodes, true))
			}
		}
		slices.SortStableFunc(events, func(a, b Event) int { return int(a.At - b.At) })
		c.Rounds = append(c.Rounds, events)
	}
	return c
}

func drawEvent(rng *rand.Rand, nodes int, operator bool) Event {
	total := 0
	for _, k := range kinds {
		if (k.group == operators) == operator {
			total += k.weight
		}
	}
	dice := rng.IntN(total)
	for _, k := range kinds {
		if (k.group == operators) != operator {
			continue
		}
		if dice -= k.weight; dice < 0 {
			node := rng.IntN(nodes)
			return Event{
				At: rng.Int64N(roundLength.Milliseconds()), Kind: k.name, Node: node,
				Peer: (node + 1 + rng.IntN(nodes-1)) % nodes,
				For:  200 + rng.Int64N(longest.Milliseconds())*rng.Int64N(1000)/1000, Arg: rng.Uint64N(1 << 32),
			}
		}
	}
	panic("unreachable: the weights have a sum")
}

func readCourse(path string) (c Course, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("course %s: %w", path, err)
	}
	for _, r := range c.Rounds {
		for _, e := range r {
			if kindOf(e.Kind) == nil || e.Node >= c.Nodes || e.Peer >= c.Nodes || e.Node < 0 || e.Peer < 0 {
				return c, fmt.Errorf("course %s: invalid event %+v", path, e)
			}
		}
	}
	return c, nil
}

// Result is what came of a course.
type Result struct {
	Counts      map[string]int `json:"counts"` // events that could be applied, by kind
	Virtual     time.Duration  `json:"virtual"`
	Looks       int            `json:"looks"`       // at all hosts while something went on
	Images      int            `json:"images"`      // found complete on a host after a round
	Converged   int            `json:"converged"`   // rounds
	Slowest     time.Duration  `json:"slowest"`     // to converge
	Published   int            `json:"published"`   // records
	Crashes     int            `json:"crashes"`     // of nodes that ran, of whatever kind
	Lost        int            `json:"lost"`        // builds that faults took from every host
	Kept        int            `json:"kept"`        // chunks that were verified before a stop, and watched afterwards
	Limited     int            `json:"limited"`     // looks at a host with limits
	MaxFiles    int            `json:"max_files"`   // open of one host, on average over a course's
	MaxHeap     int64          `json:"max_heap"`    // bytes of one host, likewise
	Begun       int            `json:"begun"`       // events of the course that had happened at its end, or when it failed
	Unavailable []string       `json:"unavailable"` // kinds that this machine does not allow
	Violations  []string       `json:"violations"`
}

// add sums results up.
func (r *Result) add(o Result) {
	if r.Counts == nil {
		r.Counts = map[string]int{}
	}
	for k, n := range o.Counts {
		r.Counts[k] += n
	}
	r.Virtual += o.Virtual
	r.Looks += o.Looks
	r.Images += o.Images
	r.Converged += o.Converged
	r.Slowest = max(r.Slowest, o.Slowest)
	r.Published += o.Published
	r.Crashes += o.Crashes
	r.Lost += o.Lost
	r.Kept += o.Kept
	r.Limited += o.Limited
	r.MaxFiles = max(r.MaxFiles, o.MaxFiles)
	r.MaxHeap = max(r.MaxHeap, o.MaxHeap)
	r.Violations = append(r.Violations, o.Violations...)
	for _, k := range o.Unavailable {
		if !slices.Contains(r.Unavailable, k) {
			r.Unavailable = append(r.Unavailable, k)
		}
	}
}

// Faults counts what is not an operator's, and of how many kinds.
func (r *Result) Faults() (faults, ofKinds int) {
	for _, k := range kinds {
		if n := r.Counts[k.name]; n > 0 && k.group != operators {
			faults += n
			ofKinds++
		}
	}
	return faults, ofKinds
}

// table is what a run prints.
func (r *Result) table() string {
	var b strings.Builder
	group := ""
	for _, k := range kinds {
		if k.group != group {
			group = k.group
			fmt.Fprintf(&b, "%s\n", group)
		}
		fmt.Fprintf(&b, "  %-24s %6d\n", k.name, r.Counts[k.name])
	}
	faults, ofKinds := r.Faults()
	fmt.Fprintf(&b, "%d faults of %d kinds, %s of virtual time, %d announcements and withdrawals\n", faults, ofKinds, r.Virtual.Round(time.Second), r.Published)
	fmt.Fprintf(&b, "%d rounds converged, the slowest %s after the last fault had ended; %d images looked at then, byte by byte\n", r.Converged, r.Slowest.Round(100*time.Millisecond), r.Images)
	fmt.Fprintf(&b, "%d builds that faults had taken from every host that held them were announced anew\n", r.Lost)
	fmt.Fprintf(&b, "%d chunks were verified before a stop, and watched afterwards; %d looks at limited transfers; at most %d open files and %.1f MB of heap a host\n", r.Kept, r.Limited, r.MaxFiles, float64(r.MaxHeap)/1e6)
	fmt.Fprintf(&b, "%d looks at all hosts in between; %d violations\n", r.Looks, len(r.Violations))
	for _, k := range r.Unavailable {
		fmt.Fprintf(&b, "not made here: %s\n", k)
	}
	return b.String()
}
