package web

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// membersView is the cluster.
type membersView struct {
	Summary string // "3 alive, 1 dead"
	Gone    string // of it, those who are not alive
	Rows    []memberRow
	Skew    string // more than one version runs: which, on how many
	Folded  bool   // there are many: those in trouble are in Rows too, the others unfold
	Trouble []memberRow
	More    int
}

type memberRow struct {
	Name, Address, Version, Reason string
	State                          mark
	Since                          stamp  // when it came into that state; empty where that is not known
	Differs                        bool   // its version is not that of most
	Containerd, Disk               string // "2.2.1" and "56 GiB of 252 GiB"; empty where it has not said
	ContainerdAway                 string // why its containerd does not answer
	Full                           bool   // less than a twentieth of its disk is free
	Here                           bool   // this node
}

func newMembersView(members []report.MemberState, self string, now time.Time) membersView {
	var v membersView
	states := map[string]int{}
	members = slices.Clone(members)
	slices.SortStableFunc(members, func(a, b report.MemberState) int { return memberRank(a) - memberRank(b) })
	versions := versionsOf(members)
	v.Skew = skewOf(versions)
	for _, m := range members {
		states[m.State]++
		row := memberRow{
			Name: cleanName(m.Name), Address: cleanText(m.Address, maxName), Version: cleanText(m.Version, maxName),
			Reason: cleanText(m.Reason, maxReference), State: memberMark(m), Here: m.ID == self && self != "",
			Differs: len(versions) > 1 && m.State == "alive" && m.Version != versions[0].version,
		}
		if !m.Since.IsZero() {
			row.Since = stampOf(m.Since, now)
		}
		row.ofHost(m.Host)
		if row.State.Class != "ready" && len(v.Trouble) < maxFirst {
			v.Trouble = append(v.Trouble, row)
		}
		if len(v.Rows) < maxMemberRows {
			v.Rows = append(v.Rows, row)
		}
	}
	var parts, gone []string
	for _, s := range []string{"alive", "suspect", "dead", "left"} {
		if n := states[s]; n > 0 {
			part := fmt.Sprintf("%d %s", n, s)
			parts = append(parts, part)
			if s != "alive" {
				gone = append(gone, part)
			}
		}
	}
	v.Summary, v.Gone = strings.Join(parts, ", "), strings.Join(gone, ", ")
	v.More = len(members) - len(v.Rows)
	v.Folded = len(members) > 2*maxFirst
	return v
}

// memberRank puts first who is away, then who cannot be talked to.
func memberRank(m report.MemberState) int {
	switch {
	case m.State != "alive" && m.State != "left":
		return 0
	case m.State == "alive" && m.Reason != "":
		return 1
	}
	return 2
}

// ofHost adds what a member said of its host.
func (r *memberRow) ofHost(h *report.Host) {
	if h == nil {
		return
	}
	r.Containerd, r.ContainerdAway = cleanText(h.Containerd, maxName), cleanText(h.ContainerdAway, maxReference)
	if h.DiskBytes > 0 {
		r.Disk = fmt.Sprintf("%s of %s", term.Bytes(h.FreeBytes), term.Bytes(h.DiskBytes))
		r.Full = h.FreeBytes < h.DiskBytes/20
	}
}

// running is a version and how many members run it.
type running struct {
	version string
	count   int
}

// versionsOf are those of the alive members, that of the most first.
func versionsOf(members []report.MemberState) (out []running) {
	counts := map[string]int{}
	for _, m := range members {
		if m.State == "alive" {
			counts[m.Version]++
		}
	}
	for _, v := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, running{v, counts[v]})
	}
	slices.SortStableFunc(out, func(a, b running) int { return cmp.Compare(b.count, a.count) })
	return out
}

// skewOf says which versions run side by side, "" where it is one.
func skewOf(versions []running) string {
	if len(versions) < 2 {
		return ""
	}
	var parts []string
	for _, v := range versions[:min(len(versions), 3)] {
		parts = append(parts, fmt.Sprintf("%s on %d", cleanText(v.version, maxName), v.count))
	}
	if more := len(versions) - len(parts); more > 0 {
		parts = append(parts, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("%d versions run side by side: %s", len(versions), strings.Join(parts, ", "))
}

func memberMark(m report.MemberState) mark {
	switch {
	case m.State == "alive" && m.Reason == "":
		return mark{"✓", "ready", "alive"}
	case m.State == "alive":
		return mark{"!", "failed", "alive, but"}
	case m.State == "dead":
		return mark{"!", "failed", "dead"}
	case m.State == "left":
		return mark{"–", "excluded", "left"}
	}
	return mark{"?", "unreachable", cleanText(m.State, maxName)}
}
