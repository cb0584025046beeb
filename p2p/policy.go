package p2p

import (
	"context"
	"slices"

	"seeder/internal/text"
	"seeder/p2p/report"
)

// maxPolicy bounds the entries of a list of a policy that is told.
const maxPolicy = 64

// noImage asks members for what they say of themselves alone: no reference is like it.
const noImage = "-"

func (n *Node) policy() report.Policy {
	p := report.Policy{Accept: slices.Clone(n.cfg.Accept.Strings())}
	for _, id := range n.cfg.Announcers {
		p.Announcers = append(p.Announcers, string(id))
	}
	for _, id := range n.cfg.Excluded {
		p.Announcers = append(p.Announcers, "!"+string(id))
	}
	slices.Sort(p.Announcers)
	p.UploadLimit, p.DownloadLimit = n.limiter.Limits()
	return boundedPolicy(p)
}

// bounded is p as it is told and believed.
func boundedPolicy(p report.Policy) report.Policy {
	list := func(in []string) (out []string) {
		for _, s := range in[:min(len(in), maxPolicy)] {
			out = append(out, text.Clean(s, maxReasonBytes))
		}
		return out
	}
	p.Announcers, p.Accept = list(p.Announcers), list(p.Accept)
	p.UploadLimit, p.DownloadLimit = max(p.UploadLimit, 0), max(p.DownloadLimit, 0)
	return p
}

// policies are those of the members that say theirs, by name.
func (n *Node) policies(ctx context.Context) map[string]*report.Policy {
	out := map[string]*report.Policy{}
	for _, a := range n.ask(ctx, []string{noImage}) {
		if a.policy != nil {
			out[a.name] = a.policy
		}
	}
	return out
}
