package web

import (
	"fmt"
	"slices"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// imagesView is the images and how far they are: with few nodes a column of words for
// each, with many how many nodes are how far, and the whole matrix on demand.
type imagesView struct {
	First, Rest imageTable
	Matrix      *matrixView // nil unless asked for
	NodesIn     int         // of the whole matrix

	Range      string // "1–100 of 1,234", "" where all are shown
	Prev, Next string // links, "" where there is nothing
	Show, Hide string // links of the matrix, "" where there is nothing to show or hide
}

// imageTable is a row for each image.
type imageTable struct {
	Nodes []string // columns of words; none where there are many nodes
	Rows  []imageRow
}

type imageRow struct {
	Name, About  string // About: version, size, who announced it
	At           stamp
	Ready, Total int
	Done         bool
	Bar          []barPart
	Width        int    // of the bar
	Behind       string // "3 fetching, 1 failed"
	Cells        []cellView
	Detail       detailView
}

// barUnits is how many units of a bar one node has.
const barUnits = 100

// barPart is a part of a bar of Total nodes, in units.
type barPart struct {
	Class     string
	From, Len int
}

// cellView is one node for one image.
type cellView struct {
	mark
	Node     string // where there is a column of words for it
	Fetching bool
	Percent  int64
}

// matrixView is the whole matrix, or as much of it as one answer takes.
type matrixView struct {
	Nodes      []string
	Rows       []imageRow
	Range      string
	Prev, Next string
}

func newImagesView(rows []report.ImageState, q pageQuery, detail func(report.ImageState) report.ImageDetail) imagesView {
	nodes := show.NodeNames(rows)
	v := imagesView{NodesIn: len(nodes)}
	few := len(nodes) <= maxWideNodes
	if few {
		q.matrix = false
	}
	most := maxImageRows
	if q.matrix {
		most = max(min(maxCells/min(len(nodes), maxNodeCols), maxImageRows), 1)
	}
	if len(rows) > maxFirst { // what is not done first, so that nobody has to look for it
		rows = slices.Clone(rows)
		slices.SortStableFunc(rows, func(a, b report.ImageState) int { return rank(a) - rank(b) })
	}
	if q.imageAt >= len(rows) {
		q.imageAt = 0
	}
	shown := rows[q.imageAt:min(q.imageAt+most, len(rows))]
	v.Range, v.Prev, v.Next = paged(len(rows), q.imageAt, len(shown), most, func(at int) string {
		next := q
		next.imageAt = at
		return next.link("#images")
	})
	var columns map[string]int
	if few {
		v.First.Nodes, columns = columnsOf(nodes)
		v.Rest.Nodes = v.First.Nodes
	}
	for i, img := range shown {
		part := &v.First
		if i >= maxFirst+2 { // two more or one that unfolds two take the same room
			part = &v.Rest
		}
		row := newImageRow(img, columns)
		row.Detail = newDetailView(img, detail(img))
		part.Rows = append(part.Rows, row)
	}
	if few {
		return v
	}
	with, without := q, q
	with.matrix, without.matrix, without.nodesAt = true, false, 0
	if !q.matrix {
		v.Show = with.link("#matrix")
		return v
	}
	v.Hide = without.link("#images")
	v.Matrix = newMatrixView(shown, nodes, q)
	return v
}

// rank puts first what is going on or has failed, then what lacks members that cannot
// be reached, which is the same for all images.
func rank(img report.ImageState) int {
	if control.Converged(img) {
		return 2
	}
	for _, n := range img.Nodes {
		switch n.State {
		case report.Failed, report.Waiting, report.Fetching, report.Importing:
			return 0
		}
	}
	return 1
}

func columnsOf(nodes []string) (names []string, columns map[string]int) {
	columns = make(map[string]int, len(nodes))
	for i, n := range nodes {
		names, columns[n] = append(names, cleanName(n)), i
	}
	return names, columns
}

func newMatrixView(rows []report.ImageState, nodes []string, q pageQuery) *matrixView {
	if q.nodesAt >= len(nodes) {
		q.nodesAt = 0
	}
	shown := nodes[q.nodesAt:min(q.nodesAt+maxNodeCols, len(nodes))]
	m := &matrixView{}
	m.Range, m.Prev, m.Next = paged(len(nodes), q.nodesAt, len(shown), maxNodeCols, func(at int) string {
		next := q
		next.nodesAt = at
		return next.link("#matrix")
	})
	var columns map[string]int
	m.Nodes, columns = columnsOf(shown)
	for _, img := range rows {
		m.Rows = append(m.Rows, newImageRow(img, columns))
	}
	return m
}

// paged says which part of all is shown, and where those before and after it are.
func paged(all, at, shown, most int, link func(at int) string) (text, prev, next string) {
	if shown == all {
		return "", "", ""
	}
	if at > 0 {
		prev = link(max(at-most, 0))
	}
	if at+shown < all {
		next = link(at + shown)
	}
	return fmt.Sprintf("%d–%d of %d", at+1, at+shown, all), prev, next
}

// newImageRow is one image with a cell for each of columns.
func newImageRow(img report.ImageState, columns map[string]int) imageRow {
	row := imageRow{
		Name:  cleanRef(img.Reference),
		About: fmt.Sprintf("version %d, %s, announced by %s", img.Version, term.Bytes(img.Size), cleanName(img.AnnouncedBy)),
		At:    stampOf(img.AnnouncedAt, img.AnnouncedAt), Ready: img.Ready, Total: img.Total, Done: img.Everywhere(),
	}
	states, gone, percent := map[report.State]int{}, 0, 0
	row.Cells = make([]cellView, len(columns))
	for i := range row.Cells {
		row.Cells[i].mark = mark{"–", "excluded", "not known"}
	}
	for _, n := range img.Nodes {
		if n.Away {
			gone++
		} else {
			states[n.State]++
		}
		if n.State == report.Fetching && !n.Away {
			percent += int(term.Percent(n.DoneBytes, n.TotalBytes))
		}
		if i, ok := columns[n.Name]; ok {
			row.Cells[i] = cellView{markOf(n), cleanName(n.Name), n.State == report.Fetching, term.Percent(n.DoneBytes, n.TotalBytes)}
		}
	}
	row.Behind = stateCounts(states, gone)
	row.Width = img.Total * barUnits
	row.Bar = barOf(states, img.Total, percent)
	return row
}

// barOf is the bar of an image: how many of total nodes are how far. Of those that fetch it
// only as much is filled as they have, percent in all.
func barOf(states map[report.State]int, total, percent int) (bar []barPart) {
	at := 0
	add := func(class string, units int) {
		if units = min(units, total*barUnits-at); units > 0 {
			bar = append(bar, barPart{class, at, units})
			at += units
		}
	}
	for _, s := range []report.State{report.Ready, report.Importing, report.Fetching, report.Waiting, report.Failed} {
		if s == report.Fetching {
			add(string(s), percent)
			add("rest", states[s]*barUnits-percent)
			continue
		}
		add(string(s), states[s]*barUnits)
	}
	add(string(report.Unreachable), total*barUnits)
	return bar
}

// readyOf is "2 of 3".
func readyOf(img report.ImageState) string { return fmt.Sprintf("%d of %d", img.Ready, img.Total) }
