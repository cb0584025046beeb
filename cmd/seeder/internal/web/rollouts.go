package web

import (
	"slices"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
	"seeder/p2p/report"
)

// rolloutsView is how the announced versions came to the nodes, the newest first. It is made
// of what the nodes still say of them: of those that were fetched last.
type rolloutsView struct{ First, Rest []rolloutRow }

type rolloutRow struct {
	Image   string
	Version uint64
	By      string
	At      stamp
	Took    string // of the node that needed the longest
	Nodes   string // "3 of 3"
	Saved   string // bytes, and what did not have to be sent
}

const (
	maxRollouts      = 5
	maxRolloutsRest  = 20
	tookPrecision    = 100 * time.Millisecond
	tookPrecisionLow = time.Second // above a minute
)

func newRolloutsView(rows []report.ImageState, now time.Time) rolloutsView {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b report.ImageState) int { return b.AnnouncedAt.Compare(a.AnnouncedAt) })
	var v rolloutsView
	for _, img := range rows {
		row, ok := newRolloutRow(img, now)
		switch {
		case !ok:
		case len(v.First) < maxRollouts:
			v.First = append(v.First, row)
		case len(v.Rest) < maxRolloutsRest:
			v.Rest = append(v.Rest, row)
		default:
			return v
		}
	}
	return v
}

// newRolloutRow is false for an image that is still on its way, or was fetched too long ago.
func newRolloutRow(img report.ImageState, now time.Time) (rolloutRow, bool) {
	var took time.Duration
	for _, n := range img.Nodes {
		if n.State == report.Fetching || n.State == report.Importing {
			return rolloutRow{}, false
		}
		if n.State == report.Ready {
			took = max(took, time.Duration(n.TookMS)*time.Millisecond)
		}
	}
	saved := control.Savings(img)
	if took == 0 || saved.Nodes == 0 {
		return rolloutRow{}, false
	}
	precision := tookPrecision
	if took > time.Minute {
		precision = tookPrecisionLow
	}
	return rolloutRow{
		Image: cleanRef(img.Reference), Version: img.Version, By: cleanName(img.AnnouncedBy), At: stampOf(img.AnnouncedAt, now),
		Took: took.Round(precision).String(), Nodes: readyOf(img), Saved: cleanText(strings.Join(show.SavedLines(saved, 0, false), "; "), maxReason),
	}, true
}
