package converge

import (
	"fmt"

	"seeder/p2p/catalog"
)

// ruledOut says which rule keeps this host from holding a, empty where none does.
func (c *Config) ruledOut(a catalog.Announcement) string {
	if why := catalog.LeftOut(a.On, c.Labels); why != "" {
		return why
	}
	if !c.Accept.Match(a.Reference) {
		return fmt.Sprintf("no pattern of images.accept %q on this host matches", c.Accept.Strings())
	}
	return ""
}

// excludes reports whether this host has to release what it has of rec: a rule keeps it
// from holding that, and the others do not count on it as the one that announced it.
func (c *Config) excludes(rec catalog.Record) bool {
	return rec.AnnouncedBy() != c.Self && c.ruledOut(rec.Announcement()) != ""
}
