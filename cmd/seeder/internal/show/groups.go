package show

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// group is the nodes of an image that are in one state for one reason.
type group struct {
	state report.State
	why   string // clean; "" where the state says it all
	nodes []report.NodeState
}

// groups gathers nodes, the most urgent states first, in each the largest group
// first. Nodes that are fetching or importing are one group each, since their reasons are
// figures; of others, reasons that differ in the node's name, its address or other
// numbers alone are one.
func groups(nodes []report.NodeState) []group {
	byKey := map[string]*group{}
	var order []*group
	for _, n := range nodes {
		why := groupReason(n)
		key := string(n.State) + " " + varying.ReplaceAllString(strings.ReplaceAll(why, n.Name, "#"), "#")
		g := byKey[key]
		if g == nil {
			g = &group{state: n.State, why: why}
			byKey[key] = g
			order = append(order, g)
		}
		if g.why != why && !strings.HasSuffix(g.why, likewise) {
			g.why += likewise
		}
		g.nodes = append(g.nodes, n)
	}
	out := make([]group, 0, len(order))
	for _, g := range order {
		switch {
		case g.state == report.Fetching:
			g.why = fetchingLine(g.nodes)
		case g.state == report.Importing && len(g.nodes) == 1:
			g.why = reasonOf(g.nodes[0])
		}
		out = append(out, *g)
	}
	slices.SortStableFunc(out, func(a, b group) int {
		return cmp.Or(cmp.Compare(groupRank(a.state), groupRank(b.state)), cmp.Compare(len(b.nodes), len(a.nodes)))
	})
	return out
}

const likewise = " (or the like)"

// varying is what differs between the reasons of nodes that have the same trouble.
var varying = regexp.MustCompile(`[0-9][0-9.:]*`)

// groupReason is the reason of one node as far as others may share it.
func groupReason(n report.NodeState) string {
	if n.State == report.Ready && n.Blocked != "" {
		return term.Clean(n.Blocked)
	}
	switch n.State {
	case report.Ready, report.Fetching, report.Importing:
		return ""
	}
	return reasonOf(n)
}

func groupRank(s report.State) int {
	if rank := urgency(s); rank >= 0 {
		return rank
	}
	if s == report.Ready {
		return 100
	}
	return 99
}

// fetchingLine sums up nodes that are fetching.
func fetchingLine(nodes []report.NodeState) string {
	least, most, rate := int64(100), int64(0), int64(0)
	slowest := ""
	for _, n := range nodes {
		p := term.Percent(n.DoneBytes, n.TotalBytes)
		if slowest == "" || p < least {
			least, slowest = p, n.Name
		}
		most, rate = max(most, p), control.AddBytes(rate, n.RateBytesPerSecond)
	}
	if len(nodes) == 1 {
		n := nodes[0]
		parts := []string{fmt.Sprintf("%s of %s", term.Bytes(n.DoneBytes), term.Bytes(n.TotalBytes))}
		switch {
		case n.RateBytesPerSecond > 0:
			parts = append(parts, term.Rate(rate), term.Remaining(n.DoneBytes, n.TotalBytes, rate))
		case reasonOf(n) != "":
			parts = []string{reasonOf(n)}
		}
		if len(n.Sources) > 0 && n.RateBytesPerSecond > 0 {
			parts = append(parts, from(n.Sources))
		}
		return strings.Join(parts, ", ")
	}
	line := fmt.Sprintf("%d%% to %d%%, %s is behind", least, most, term.Clean(slowest))
	if least == most {
		line = fmt.Sprintf("%d%%", most)
	}
	if rate > 0 {
		line += ", " + term.Rate(rate) + " together"
	}
	return line
}

// text is the state, of one node with its progress.
func (g group) text() string {
	if len(g.nodes) == 1 {
		return StateText(g.nodes[0])
	}
	return term.Clean(string(g.state))
}

// who names up to most nodes.
func (g group) who(most int) string {
	var names []string
	for _, n := range g.nodes {
		names = append(names, term.Clean(n.Name))
	}
	return some(names, most)
}

// some lists up to most of names, and how many more there are.
func some(names []string, most int) string {
	if more := len(names) - most; more > 1 { // "1 more" is no shorter than its name
		names = append(names[:most:most], fmt.Sprintf("… %d more", more))
	}
	return strings.Join(names, ", ")
}
