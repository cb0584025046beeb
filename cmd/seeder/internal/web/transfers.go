package web

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// transfersView is what is on its way to which node, and from where.
type transfersView struct {
	Count       int // nodes and images
	Summary     string
	First, Rest []transferRow
	More        int
}

type transferRow struct {
	Node, Image string
	State       mark
	Percent     int64
	Has         string // "120 MiB of 180 MiB"
	Speed, Left string
	From        []sourceView
	Why         string // nothing comes
}

type sourceView struct {
	Name  string
	Local bool // was on the host already
	Bytes string
}

// arrival is one image on its way to one node.
type arrival struct {
	ref  string
	node report.NodeState
}

func newTransfersView(rows []report.ImageState, here string) transfersView {
	all := transfersOf(rows, here)
	v := transfersView{Count: len(all), Summary: transferSummary(all)}
	for i, t := range all[:min(len(all), maxFirst+maxRest)] {
		row := newTransferRow(t)
		if i < maxFirst {
			v.First = append(v.First, row)
		} else {
			v.Rest = append(v.Rest, row)
		}
	}
	v.More = len(all) - len(v.First) - len(v.Rest)
	return v
}

// transfersOf are those to this node first, then by node and image: rows keep their places
// while the figures change.
func transfersOf(rows []report.ImageState, here string) []arrival {
	var all []arrival
	for _, img := range rows {
		for _, n := range img.Nodes {
			if n.State == report.Fetching || n.State == report.Importing {
				all = append(all, arrival{img.Reference, n})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b arrival) int {
		if aHere, bHere := a.node.Name == here, b.node.Name == here; aHere != bHere {
			if aHere {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.node.Name, b.node.Name), cmp.Compare(a.ref, b.ref))
	})
	return all
}

func transferSummary(all []arrival) string {
	states := map[report.State]int{}
	var rate int64
	for _, t := range all {
		states[t.node.State]++
		rate += max(t.node.RateBytesPerSecond, 0)
	}
	s := stateCounts(states, 0)
	if rate > 0 {
		s += ", " + term.Bytes(rate) + "/s in all"
	}
	return s
}

func newTransferRow(t arrival) transferRow {
	n := t.node
	row := transferRow{
		Node: cleanName(n.Name), Image: cleanRef(t.ref), State: markOf(n), Percent: term.Percent(n.DoneBytes, n.TotalBytes),
		Has: fmt.Sprintf("%s of %s", term.Bytes(n.DoneBytes), term.Bytes(n.TotalBytes)),
	}
	if rate := n.RateBytesPerSecond; rate > 0 && n.State == report.Fetching {
		row.Speed = term.Bytes(rate) + "/s"
		if row.Left = timeLeft(n.TotalBytes-n.DoneBytes, rate); row.Left != "" {
			row.Left += ", then unpacking"
		}
	} else {
		row.Why = cleanText(n.Reason, maxReason)
	}
	for _, s := range n.Sources {
		row.From = append(row.From, sourceView{cleanName(s.Name), s.Name == report.LocalSource || s.Name == report.DeltaSource, term.Bytes(s.Bytes)})
	}
	return row
}

// timeLeft is how long so many bytes take, "" where that says nothing.
func timeLeft(bytes, rate int64) string {
	switch left := int64(math.Ceil(float64(bytes) / float64(rate))); {
	case left <= 0 || left >= 100*3600:
		return ""
	case left < 60:
		return fmt.Sprintf("%d s left", left)
	case left < 3600:
		return fmt.Sprintf("%d min left", (left+59)/60)
	default:
		return fmt.Sprintf("%d h left", (left+3599)/3600)
	}
}
