package p2p

import (
	"cmp"
	"slices"

	"seeder/internal/text"
)

// Source is where bytes of an image came from: a peer, by its name, LocalSource or
// OtherSources.
type Source struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // of chunks as stored
}

const (
	// LocalSource is the name of what was not fetched because this host had it.
	LocalSource = "local"
	// OtherSources is the name of all peers together that gave less than the
	// maxSources named ones.
	OtherSources = "others"
	// maxSources bounds the peers that are named.
	maxSources = 8
)

// sources are the peers, those that gave most first, then the others in one, then
// what was here already; without those that gave nothing.
func sources(raw map[string]int64, local int64) []Source {
	var out []Source
	for name, bytes := range raw {
		if bytes > 0 {
			out = append(out, Source{name, bytes})
		}
	}
	slices.SortFunc(out, func(a, b Source) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	if len(out) > maxSources {
		others := Source{Name: OtherSources}
		for _, s := range out[maxSources:] {
			others.Bytes += s.Bytes
		}
		out = append(out[:maxSources:maxSources], others)
	}
	if local > 0 {
		out = append(out, Source{LocalSource, local})
	}
	return out
}

// readSources bounds the sources that another node reports.
func readSources(list []Source) []Source {
	var out []Source
	for _, s := range list[:min(len(list), maxSources+2)] {
		if s.Bytes > 0 {
			out = append(out, Source{text.Clean(s.Name, maxReasonBytes), s.Bytes})
		}
	}
	return out
}
