package catalog

import (
	"io/fs"
	"math"
	"strings"

	"seeder/internal/text"
)

// Announced reports whether ref is announced now.
func (c *Catalog) Announced(ref string) bool {
	rec, ok := c.Get(ref)
	return ok && !rec.Announcement().Withdrawn
}

// References are what is announced now.
func (c *Catalog) References() []string {
	var refs []string
	for _, r := range c.All() {
		if a := r.Announcement(); !a.Withdrawn {
			refs = append(refs, a.Reference)
		}
	}
	return refs
}

// Unknown says that ref is not in the catalog and what is, nearest first. It wraps
// fs.ErrNotExist.
func (c *Catalog) Unknown(ref string) error {
	refs := c.References()
	if len(refs) == 0 {
		return &unknownError{"nothing is announced in this cluster"}
	}
	near := text.Nearest(refs, 3, math.MaxInt, func(name string) int { return text.Distance(ref, name) })
	return &unknownError{"it is not announced; nearest: " + strings.Join(near, ", ")}
}

// unknownError says that a reference is not in the catalog. errors.Is finds
// fs.ErrNotExist in it.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

func (e *unknownError) Unwrap() error { return fs.ErrNotExist }
