package matrix

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
)

// Here is what ref is announced as, and how far this node is with it; ok is false where it
// is not announced. Nobody is asked.
func (m *Matrix) Here(ref string) (target ocispec.Descriptor, s report.State, ok bool) {
	rec, ok := m.cfg.Catalog.Get(ref)
	if !ok || rec.Announcement().Withdrawn {
		return ocispec.Descriptor{}, "", false
	}
	a := rec.Announcement()
	c, known := m.cfg.Column.get(ref)
	if !known || c.version != a.Version {
		return a.Target, report.Waiting, true
	}
	return a.Target, c.state, true
}
