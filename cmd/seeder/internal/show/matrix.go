package show

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mattn/go-runewidth"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// maxColumns is how many nodes a table has columns or rows for. More are counted and
// gathered into groups.
const maxColumns = 12

// PrintMatrix is the node × image matrix: a column for each node where there is
// room, else how many are in which state; then who is not ready, and why.
func PrintMatrix(w io.Writer, terminal term.Terminal, images report.Images) error {
	var rows []report.ImageState
	for _, img := range images.Images {
		if img.State != "withdrawn" {
			rows = append(rows, img)
		}
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "nothing is announced; on a host that has the image: seeder announce REF")
		return err
	}
	nodes := NodeNames(rows)
	t := matrixFor(terminal, rows, nodes)
	if err := t.Print(w); err != nil {
		return err
	}
	if len(rows) > maxColumns {
		if _, err := fmt.Fprintln(w, terminal.Paint(term.Faint, imagesLine(rows, len(nodes)))); err != nil {
			return err
		}
	}
	return printLaggards(w, terminal, rows)
}

// matrixFor is the table that says most in the room there is.
func matrixFor(terminal term.Terminal, rows []report.ImageState, nodes []string) *term.Table {
	if len(nodes) <= maxColumns {
		if t := matrixTable(terminal, rows, nodes, wideColumns); t.Fits() {
			return t
		}
		if t, ok := shortened(rows, func(c columns) *term.Table { return matrixTable(terminal, rows, nodes, c) }); ok {
			return t
		}
	}
	if t := countTable(terminal, rows, wideColumns); t.Fits() {
		return t
	}
	t, _ := shortened(rows, func(c columns) *term.Table { return countTable(terminal, rows, c) })
	return t
}

// columns are those of an image that do not depend on the nodes: all of them, or only
// how many are ready, which comes first so that nothing cuts it off, and the reference
// in so many columns.
type columns struct {
	wide bool
	ref  int
}

var wideColumns = columns{wide: true}

// leastRef is the least room for a reference.
const leastRef = 24

// shortened is the narrow table with the references as long as they fit, and whether it
// does.
func shortened(rows []report.ImageState, table func(columns) *term.Table) (t *term.Table, fits bool) {
	longest := leastRef
	for _, img := range rows {
		longest = max(longest, runewidth.StringWidth(short(img.Reference)))
	}
	for ref := longest; ref >= leastRef; ref-- {
		if t = table(columns{ref: ref}); t.Fits() {
			return t, true
		}
	}
	return t, false
}

// imagesLine is the foot of a long table.
func imagesLine(rows []report.ImageState, nodes int) string {
	ready := 0
	for _, img := range rows {
		if control.Converged(img) {
			ready++
		}
	}
	return fmt.Sprintf("%s, %d of them ready on every node that should hold them; %s", term.Plural(len(rows), "image"), ready, term.Plural(nodes, "node"))
}

// matrixTable has a column for each node.
func matrixTable(terminal term.Terminal, rows []report.ImageState, nodes []string, c columns) *term.Table {
	t := &term.Table{Term: terminal}
	names := imageColumns(c.wide)
	for _, n := range nodes {
		names = append(names, term.Clean(n))
	}
	t.Header(names...)
	for _, img := range rows {
		row := imageCells(img, c)
		byName := map[string]report.NodeState{}
		for _, n := range img.Nodes {
			byName[n.Name] = n
		}
		for _, name := range nodes {
			state := term.Cell{Text: "-", Colour: term.Faint}
			if n, ok := byName[name]; ok {
				state = term.Cell{Text: StateText(n), Colour: stateColour(n.State)}
			}
			row = append(row, state)
		}
		t.Add(row...)
	}
	return t
}

// countTable has one column for all nodes that are not ready.
func countTable(terminal term.Terminal, rows []report.ImageState, c columns) *term.Table {
	t := &term.Table{Term: terminal}
	t.Header(append(imageColumns(c.wide), "NOT READY")...)
	for _, img := range rows {
		t.Add(append(imageCells(img, c), term.Cell{Text: counts(img.Nodes, report.Ready)})...)
	}
	return t
}

// imageColumns are the columns that do not depend on the nodes; wide: all of them.
func imageColumns(wide bool) []string {
	if wide {
		return []string{"IMAGE", "DIGEST", "VERSION", "SIZE", "READY"}
	}
	return []string{"READY", "IMAGE"}
}

func imageCells(img report.ImageState, c columns) []term.Cell {
	ready := term.Cell{Text: fmt.Sprintf("%d/%d", img.Ready, img.Total), Colour: term.Green}
	if !img.Everywhere() {
		ready.Colour = term.Yellow
	}
	if !c.wide {
		return []term.Cell{ready, {Text: term.Middle(short(img.Reference), c.ref)}}
	}
	return []term.Cell{{Text: short(img.Reference)}, {Text: cli.ShortDigest(term.Clean(img.Digest))}, {Text: fmt.Sprint(img.Version)}, {Text: term.Bytes(img.Size)}, ready}
}

// NodeNames are the nodes of all rows, in the order of the first row that has
// them.
func NodeNames(rows []report.ImageState) []string {
	var names []string
	seen := map[string]bool{}
	for _, img := range rows {
		for _, n := range img.Nodes {
			if !seen[n.Name] {
				seen[n.Name] = true
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// maxReasons is how many reasons are shown below a matrix.
const maxReasons = 20

// maxGroupNames and maxGroupRefs are how many nodes and images of one reason are named
// below a matrix.
const (
	maxGroupNames = 6
	maxGroupRefs  = 3
)

// laggards are nodes that are not ready for the same reason, with every image of
// which that is so.
type laggards struct {
	group
	refs []string
}

// behind gathers the laggards of all rows.
func behind(rows []report.ImageState) []*laggards {
	var out []*laggards
	byKey := map[string]*laggards{}
	for _, img := range rows {
		for _, g := range groups(img.Nodes) {
			if g.state == report.Ready && g.why == "" {
				continue
			}
			key := g.text() + "\n" + g.who(len(g.nodes)) + "\n" + g.why
			l := byKey[key]
			if l == nil {
				l = &laggards{group: g}
				byKey[key] = l
				out = append(out, l)
			}
			l.refs = append(l.refs, short(img.Reference))
		}
	}
	return out
}

// printLaggards says why cells are not ready, in a table, or in lines where that is
// too wide.
func printLaggards(w io.Writer, terminal term.Terminal, rows []report.ImageState) error {
	t := &term.Table{Term: terminal}
	var lines []string
	all := behind(rows)
	if len(all) == 0 {
		return nil
	}
	for _, l := range all[:min(len(all), maxReasons)] {
		who, refs := l.who(maxGroupNames), some(l.refs, maxGroupRefs)
		l.why = awayFor(l.group)
		t.Add(term.Cell{Text: who}, term.Cell{Text: refs}, term.Cell{Text: l.text(), Colour: stateColour(l.state)}, term.Cell{Text: l.why})
		line := fmt.Sprintf("%s %s on %s", refs, l.text(), who)
		if l.why != "" {
			line += ": " + l.why
		}
		lines = append(lines, term.Wrap(line, terminal.Width-1, 2)...)
	}
	if t.Fits() {
		lines = t.Lines()
	}
	if more := len(all) - maxReasons; more > 0 {
		lines = append(lines, fmt.Sprintf("… and %d more: seeder images REF", more))
	}
	_, err := fmt.Fprintln(w, "\n"+strings.Join(lines, "\n"))
	return err
}

// awayFor is why a group is not ready, of nodes that are away with since when.
func awayFor(g group) string {
	if g.state != report.Unreachable || len(g.nodes) == 0 || !g.nodes[0].Away {
		return g.why
	}
	return g.why + " since " + term.Clock(g.nodes[0].Since)
}

// PrintImage is one image with all nodes: in a table, or gathered by state and
// reason where they are many or the table is too wide.
func PrintImage(w io.Writer, terminal term.Terminal, img report.ImageState) error {
	head := fmt.Sprintf("%s  %s  %s", short(img.Reference), term.Clean(img.Digest), term.Bytes(img.Size))
	if terminal.Width > 0 && runewidth.StringWidth(head) >= terminal.Width {
		head = fmt.Sprintf("%s  %s\n%s", short(img.Reference), term.Bytes(img.Size), term.Clean(img.Digest))
	}
	if _, err := fmt.Fprintf(w, "%s\nversion %d, %s by %s %s\n", head, img.Version, term.Clean(img.State), term.Clean(img.AnnouncedBy), term.Ago(img.AnnouncedAt)); err != nil {
		return err
	}
	if len(img.Nodes) == 0 {
		return nil
	}
	for _, line := range term.Wrap(imageLine(img)[len(short(img.Reference)+": "):], terminal.Width, 2) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if t := nodeTable(terminal, img.Nodes); len(img.Nodes) <= maxColumns && t.Fits() {
		return t.Print(w)
	}
	for _, g := range groups(img.Nodes) {
		head := term.Plural(len(g.nodes), "node") + " " + g.text()
		if g.why != "" {
			head += ": " + g.why
		}
		width := terminal.Width - 1
		lines := term.Wrap(head, width, 2)
		for _, line := range term.Wrap(g.who(len(g.nodes)), width-2, 0) {
			lines = append(lines, "  "+line)
		}
		for i, line := range lines {
			if i == 0 {
				line = terminal.Paint(stateColour(g.state), line)
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

func nodeTable(terminal term.Terminal, nodes []report.NodeState) *term.Table {
	t := &term.Table{Term: terminal}
	names := []string{"NODE", "STATE", "HAS"}
	sourced := slices.ContainsFunc(nodes, func(n report.NodeState) bool { return len(n.Sources) > 0 })
	if sourced {
		names = append(names, "FROM")
	}
	t.Header(append(names, "REASON")...)
	for _, n := range nodes {
		if n.Away {
			n.Reason += " since " + term.Clock(n.Since)
		}
		has := term.Cell{Text: fmt.Sprintf("%s of %s", term.Bytes(n.DoneBytes), term.Bytes(n.TotalBytes))}
		reason := n.Reason
		if n.State == report.Ready {
			has, reason = term.Cell{Text: term.Bytes(n.TotalBytes)}, n.Blocked
		}
		row := []term.Cell{{Text: term.Clean(n.Name)}, {Text: StateText(n), Colour: stateColour(n.State)}, has}
		if sourced {
			row = append(row, term.Cell{Text: sourceNames(n.Sources, maxSourceNames)})
		}
		t.Add(append(row, term.Cell{Text: term.Clean(reason)})...)
	}
	return t
}
