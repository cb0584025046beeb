package web

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// trafficView is the chart of what this node sent and received of late.
type trafficView struct {
	Width, Height int    // of the chart, in its own units
	In, Out       string // paths, "" where nothing moved
	NowIn, NowOut string // rates of the last slot that is over
	Most          string // the rate at the top of the chart
	Minutes       int    // that it covers
}

const (
	chartHeight = 40
	// leastRate is the least rate that fills the chart: the questions of a page that is
	// looked at are no traffic.
	leastRate = 64 << 10
)

// newTrafficView leaves the newest slot out: it is not over.
func newTrafficView(r report.Traffic) trafficView {
	slots := min(len(r.In), len(r.Out)) - 1
	if slots < 2 || r.Slot <= 0 {
		return trafficView{}
	}
	rate := func(bytes int64) int64 { return int64(float64(bytes) / r.Slot.Seconds()) }
	most := max(rate(slices.Max(r.In[:slots])), rate(slices.Max(r.Out[:slots])), leastRate)
	path := func(list []int64) string {
		if slices.Max(list) == 0 {
			return ""
		}
		var b strings.Builder
		fmt.Fprintf(&b, "M0 %d", chartHeight)
		for i, bytes := range list {
			fmt.Fprintf(&b, "L%d %.1f", i, chartHeight-float64(rate(bytes))/float64(most)*chartHeight)
		}
		fmt.Fprintf(&b, "L%d %dZ", len(list)-1, chartHeight)
		return b.String()
	}
	v := trafficView{Width: slots - 1, Height: chartHeight, In: path(r.In[:slots]), Out: path(r.Out[:slots]), NowIn: "nothing", NowOut: "nothing",
		Most: term.Rate(most), Minutes: int((time.Duration(slots) * r.Slot).Round(time.Minute).Minutes())}
	if now := rate(r.In[slots-1]); now >= leastRate {
		v.NowIn = term.Rate(now)
	}
	if now := rate(r.Out[slots-1]); now >= leastRate {
		v.NowOut = term.Rate(now)
	}
	return v
}
