package tally

import (
	"cmp"
	"slices"

	"seeder/p2p/report"
)

// MaxNamed bounds the peers that an Origin names; what the others gave, and what was here,
// are one source each.
const MaxNamed = 8

// sources are the peers, those that gave most first, then the others in one, then what was
// rebuilt and what was here already; without those that gave nothing.
func sources(raw map[string]int64, rebuilt, local int64) []report.Source {
	var out []report.Source
	for name, bytes := range raw {
		if bytes > 0 {
			out = append(out, report.Source{Name: name, Bytes: bytes})
		}
	}
	slices.SortFunc(out, func(a, b report.Source) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	if len(out) > MaxNamed {
		others := report.Source{Name: report.OtherSources}
		for _, s := range out[MaxNamed:] {
			others.Bytes += s.Bytes
		}
		out = append(out[:MaxNamed:MaxNamed], others)
	}
	if rebuilt > 0 {
		out = append(out, report.Source{Name: report.DeltaSource, Bytes: rebuilt})
	}
	if local > 0 {
		out = append(out, report.Source{Name: report.LocalSource, Bytes: local})
	}
	return out
}
