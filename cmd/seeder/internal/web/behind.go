package web

import (
	"cmp"
	"slices"

	"seeder/p2p/report"
)

// behindView is who is not ready and gets nothing now, and why.
type behindView struct {
	First, Rest []behindRow
	More        int // rows that are not shown
}

// behindRow is nodes and images for which the same is so for the same reason.
type behindRow struct {
	State         mark
	Nodes, Images names
	Reason        string
	Do, Else      string // the command that helps; where there is none, what to do
}

// maxReasonGroups bounds the different reasons that are told apart.
const maxReasonGroups = 2000

func newBehindView(rows []report.ImageState) behindView {
	groups, left := groupBehind(rows)
	slices.SortStableFunc(groups, func(a, b *behindGroup) int {
		return cmp.Compare(slices.Index(stateOrder, a.state), slices.Index(stateOrder, b.state))
	})
	v := behindView{More: left}
	for i, g := range groups {
		row := behindRow{
			State: markOf(report.NodeState{State: g.state}), Reason: cleanText(g.reason, maxReason),
			Do:    cleanText(doAbout(report.NodeState{Name: g.nodes[0], State: g.state, Reason: g.reason, Away: g.away}, g.images[0], len(g.nodes)), maxReason),
			Nodes: namesOf(g.nodes, len(g.nodes), 3, cleanName), Images: namesOf(g.images, len(g.images), 3, cleanRef),
		}
		if row.Else = "wait"; g.state == report.Excluded {
			row.Else = "nothing"
		}
		switch {
		case i < maxFirst:
			v.First = append(v.First, row)
		case i < maxFirst+maxRest:
			v.Rest = append(v.Rest, row)
		default:
			v.More++
		}
	}
	return v
}

type behindGroup struct {
	state         report.State
	reason        string
	away          bool
	nodes, images []string
	seen          map[string]bool // nodes
}

// blocked is how the page calls a node that is ready, and whose kubelet refuses the image.
const blocked report.State = "blocked"

// groupBehind puts together what has the same state and reason, and says how many
// cells were left out.
func groupBehind(rows []report.ImageState) (groups []*behindGroup, left int) {
	type key struct {
		state  report.State
		reason string
	}
	byKey := map[key]*behindGroup{}
	for _, img := range rows {
		for _, n := range img.Nodes {
			if n.State == report.Ready && n.Blocked != "" {
				n.State, n.Reason = blocked, n.Blocked
			}
			if n.State == report.Ready || n.State == report.Fetching || n.State == report.Importing {
				continue
			}
			k := key{n.State, n.Reason}
			g := byKey[k]
			if g == nil && len(groups) == maxReasonGroups {
				left++
				continue
			}
			if g == nil {
				g = &behindGroup{state: n.State, reason: n.Reason, away: n.Away, seen: map[string]bool{}}
				byKey[k], groups = g, append(groups, g)
			}
			if !g.seen[n.Name] {
				g.seen[n.Name], g.nodes = true, append(g.nodes, n.Name)
			}
			if len(g.images) == 0 || g.images[len(g.images)-1] != img.Reference {
				g.images = append(g.images, img.Reference)
			}
		}
	}
	return groups, left
}
