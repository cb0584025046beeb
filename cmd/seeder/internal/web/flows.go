package web

import (
	"cmp"
	"maps"
	"slices"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// flowsView is who gave how much to whom: rows are the nodes that got bytes, columns those
// that gave them.
type flowsView struct {
	Givers []string
	Rows   []flowRow
}

type flowRow struct {
	To    string
	Cells []flowCell
}

type flowCell struct {
	Bytes string // "" for none
	Heat  int    // 0 to maxHeat
}

const (
	// maxFlowNodes bounds rows and columns; the nodes that moved less are summed up in one.
	maxFlowNodes = 10
	maxHeat      = 4
	// restName is the row or column of all that have none of their own.
	restName = "others"
)

// newFlowsView sums what the nodes say of the images that are announced now.
func newFlowsView(rows []report.ImageState) flowsView {
	flow := map[string]map[string]int64{} // bytes by who got them, then by who gave them
	got, gave := map[string]int64{}, map[string]int64{}
	for _, img := range rows {
		for _, n := range img.Nodes {
			for _, s := range n.Sources {
				if s.Name == report.LocalSource || s.Name == report.DeltaSource || s.Bytes <= 0 {
					continue
				}
				name := s.Name
				if name == report.OtherSources {
					name = restName
				}
				if flow[n.Name] == nil {
					flow[n.Name] = map[string]int64{}
				}
				flow[n.Name][name] = control.AddBytes(flow[n.Name][name], s.Bytes)
				got[n.Name], gave[name] = control.AddBytes(got[n.Name], s.Bytes), control.AddBytes(gave[name], s.Bytes)
			}
		}
	}
	to, from := largest(got), largest(gave)
	table, most := make([][]int64, len(to)), int64(1)
	for i := range table {
		table[i] = make([]int64, len(from))
	}
	for t, givers := range flow {
		for f, bytes := range givers {
			cell := &table[placeOf(to, t)][placeOf(from, f)]
			*cell = control.AddBytes(*cell, bytes)
			most = max(most, *cell)
		}
	}
	var v flowsView
	for _, name := range from {
		v.Givers = append(v.Givers, cleanName(name))
	}
	for i, name := range to {
		row := flowRow{To: cleanName(name)}
		for _, bytes := range table[i] {
			c := flowCell{}
			if bytes > 0 {
				c = flowCell{term.Bytes(bytes), 1 + int(float64(bytes)/float64(most)*(maxHeat-1))}
			}
			row.Cells = append(row.Cells, c)
		}
		v.Rows = append(v.Rows, row)
	}
	return v
}

// largest are the names of those that moved the most, by name, and one for the rest at the
// end where there is a rest.
func largest(bytes map[string]int64) []string {
	names := slices.SortedFunc(maps.Keys(bytes), func(a, b string) int { return cmp.Or(cmp.Compare(bytes[b], bytes[a]), cmp.Compare(a, b)) })
	rest := len(names) > maxFlowNodes || slices.Contains(names, restName)
	names = slices.DeleteFunc(names, func(n string) bool { return n == restName })
	names = slices.Sorted(slices.Values(names[:min(len(names), maxFlowNodes)]))
	if rest {
		names = append(names, restName)
	}
	return names
}

// placeOf is where a name has its row or column.
func placeOf(names []string, name string) int {
	if i := slices.Index(names, name); i >= 0 {
		return i
	}
	return len(names) - 1
}
