package matrix

import (
	"context"

	"seeder/internal/text"
	"seeder/p2p/report"
)

// maxPolicy bounds the entries of a list of a policy that is told.
const maxPolicy = 64

// noImage asks members for what they say of themselves alone: no reference is like it.
const noImage = "-"

// boundedPolicy is p as it is told and believed.
func boundedPolicy(p report.Policy) report.Policy {
	list := func(in []string) (out []string) {
		for _, s := range in[:min(len(in), maxPolicy)] {
			out = append(out, text.Clean(s, report.MaxTextBytes))
		}
		return out
	}
	p.Announcers, p.Accept = list(p.Announcers), list(p.Accept)
	p.UploadLimit, p.DownloadLimit = max(p.UploadLimit, 0), max(p.DownloadLimit, 0)
	return p
}

// Policies are those of the members that say theirs, by name.
func (m *Matrix) Policies(ctx context.Context) map[string]*report.Policy {
	out := map[string]*report.Policy{}
	for _, a := range m.ask(ctx, []string{noImage}) {
		if a.policy != nil {
			out[a.name] = a.policy
		}
	}
	return out
}
