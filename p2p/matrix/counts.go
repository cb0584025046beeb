package matrix

import (
	"errors"
	"slices"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

// Counts says how the node is.
func (m *Matrix) Counts() report.Counts {
	c := report.Counts{
		Images:  map[report.State]int{report.Waiting: 0, report.Fetching: 0, report.Importing: 0, report.Ready: 0, report.Failed: 0, report.Excluded: 0},
		Refused: m.refusedCounts(), NeverReached: m.cfg.Members.NeverReached(), Alone: !m.cfg.Members.Join().OK,
		Uploads: m.cfg.Images.Uploads(), ContainerdUp: m.cfg.Health.Status().OK,
	}
	cells := m.cfg.Column.states()
	for _, rec := range m.cfg.Catalog.All() {
		a := rec.Announcement()
		if a.AnnouncedAt.After(c.LastAnnouncedAt) {
			c.LastAnnouncedAt = a.AnnouncedAt
		}
		if a.Withdrawn {
			c.Withdrawn++
			continue
		}
		c.Announced++
		x, ok := cells[a.Reference]
		if !ok {
			x = cellState{state: report.Waiting} // the converge loop is about to hear of it
		}
		c.Images[x.state]++
		c.LackingBytes = max(c.LackingBytes, x.lacking)
		if x.state != report.Ready && x.state != report.Excluded {
			c.Behind = append(c.Behind, report.Behind{Reference: a.Reference, State: x.state, Since: x.since})
		}
		if !x.since.IsZero() && (c.UnconvergedSince.IsZero() || x.since.Before(c.UnconvergedSince)) {
			c.UnconvergedSince = x.since
		}
	}
	slices.SortStableFunc(c.Behind, func(a, b report.Behind) int { return a.Since.Compare(b.Since) })
	c.Behind = c.Behind[:min(len(c.Behind), report.MaxBehind)]
	return c
}

// refusedCounts counts the announcements that this node does not take, by reason.
func (m *Matrix) refusedCounts() map[string]int {
	out := map[string]int{report.RefusedAnnouncer: 0, report.RefusedFull: 0, report.RefusedVersion: 0}
	for _, r := range m.cfg.Catalog.Refusals() {
		var announcer *catalog.AnnouncerError
		var version *catalog.VersionError
		switch {
		case errors.As(r.Why, &announcer):
			out[report.RefusedAnnouncer]++
		case errors.As(r.Why, &version):
			out[report.RefusedVersion]++
		default:
			out[report.RefusedFull]++
		}
	}
	return out
}
