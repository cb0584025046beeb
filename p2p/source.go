package p2p

import (
	"cmp"
	"slices"

	"seeder/internal/text"
	"seeder/p2p/report"
)

// maxSources bounds the peers that are named.
const maxSources = 8

// sources are the peers, those that gave most first, then the others in one, then
// what was here already; without those that gave nothing.
func sources(raw map[string]int64, local int64) []report.Source {
	var out []report.Source
	for name, bytes := range raw {
		if bytes > 0 {
			out = append(out, report.Source{Name: name, Bytes: bytes})
		}
	}
	slices.SortFunc(out, func(a, b report.Source) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	if len(out) > maxSources {
		others := report.Source{Name: report.OtherSources}
		for _, s := range out[maxSources:] {
			others.Bytes += s.Bytes
		}
		out = append(out[:maxSources:maxSources], others)
	}
	if local > 0 {
		out = append(out, report.Source{Name: report.LocalSource, Bytes: local})
	}
	return out
}

// readSources bounds the sources that another node reports.
func readSources(list []report.Source) []report.Source {
	var out []report.Source
	for _, s := range list[:min(len(list), maxSources+2)] {
		if s.Bytes > 0 {
			out = append(out, report.Source{Name: text.Clean(s.Name, maxReasonBytes), Bytes: s.Bytes})
		}
	}
	return out
}
