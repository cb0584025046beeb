// Command shape prints the shape of the code of this module and fails where it is
// above its limits: `make shape`.
//
// It counts what is compiled into the program: Go files that are not tests, not
// generated, not below a directory named testdata, in packages whose name does not end
// in "test". It reads syntax alone, so that it needs nothing built. Go's own rules keep
// packages free of circles; this keeps them, their files and their types small.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// limit is a bound of one figure.
type limit struct {
	name   string
	figure func(*shape) (value int, where string)
	at     int
}

// limits are those of docs/decisions.md, "The shape of the code".
var limits = []limit{
	{"lines of the largest package", (*shape).largestPackage, 3300},
	{"lines of package main of cmd/seeder", (*shape).mainPackage, 2000},
	{"lines of the largest file", (*shape).largestFile, 500},
	{"lines of the longest function", (*shape).longestFunction, 70},
	{"methods of the largest type", (*shape).mostMethods, 30},
	{"fields of the largest type", (*shape).mostFields, 15},
	{"methods of the widest interface", (*shape).widestInterface, 6},
	{"import depth inside the module", (*shape).depth, 6},
}

func main() {
	root := flag.String("root", ".", "directory of the module")
	flag.Parse()
	s, err := measure(*root)
	if err == nil {
		err = report(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "shape:", err)
		os.Exit(1)
	}
}

// report prints the table and returns an error for each limit that is exceeded.
func report(s *shape) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	lines := 0
	for _, p := range s.packages {
		lines += p.lines
	}
	fmt.Fprintf(w, "lines of code, packages\t%d, %d\n", lines, len(s.packages))
	lengths := s.functionLengths()
	fmt.Fprintf(w, "lines of functions, median, p90, p99\t%d, %d, %d\n", at(lengths, 50), at(lengths, 90), at(lengths, 99))
	fmt.Fprintf(w, "exported names with a comment\t%d of %d\n", s.documented, s.exported)
	fmt.Fprintf(w, "func init\t%d\n\n", s.inits)
	fmt.Fprintln(w, "\tnow\tlimit\twhere")
	var errs []error
	for _, l := range limits {
		value, where := l.figure(s)
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", l.name, value, l.at, where)
		if value > l.at {
			errs = append(errs, fmt.Errorf("%s: %d, more than %d: %s", l.name, value, l.at, where))
		}
	}
	if s.inits > 0 {
		errs = append(errs, fmt.Errorf("func init: %d, want none: what runs at the start is called by main", s.inits))
	}
	fmt.Fprintln(w, "\nlines\tpackage")
	slices.SortFunc(s.packages, func(a, b *pkg) int { return b.lines - a.lines })
	for _, p := range s.packages {
		fmt.Fprintf(w, "%d\t%s\n", p.lines, strings.TrimPrefix(p.path, s.module+"/"))
	}
	return errors.Join(errors.Join(errs...), w.Flush())
}

// at is the p-th percentile of sorted values.
func at(sorted []int, p int) int {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}
