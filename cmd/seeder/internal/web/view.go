package web

import (
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
)

// Bounds of what one answer shows. Whatever is left out is counted.
const (
	maxWideNodes  = 6     // nodes up to which each has a column of words
	maxImageRows  = 100   // images of one answer
	maxNodeCols   = 400   // columns of the matrix
	maxCells      = 12000 // of the matrix
	maxFirst      = 10    // rows of a list that are seen at once
	maxRest       = 90    // rows of a list that are folded away
	maxMemberRows = 400
	maxEventRows  = 30
)

// pageQuery is what of the cluster is asked for.
type pageQuery struct {
	matrix           bool
	imageAt, nodesAt int // the first of them, counted from 0
}

func parsePageQuery(q url.Values) pageQuery {
	at := func(key string) int {
		n, err := strconv.Atoi(q.Get(key))
		if err != nil || n < 1 || n > 1<<20 {
			return 0
		}
		return n - 1
	}
	return pageQuery{matrix: q.Get("show") == "matrix", imageAt: at("at"), nodesAt: at("nodes")}
}

// link is the address of the page with this query.
func (q pageQuery) link(anchor string) string {
	v := url.Values{}
	if q.matrix {
		v.Set("show", "matrix")
	}
	if q.imageAt > 0 {
		v.Set("at", strconv.Itoa(q.imageAt+1))
	}
	if q.nodesAt > 0 {
		v.Set("nodes", strconv.Itoa(q.nodesAt+1))
	}
	link := "/"
	if len(v) > 0 {
		link += "?" + v.Encode()
	}
	return link + anchor
}

// pageView is what page.html shows: text that is clean, but not escaped.
type pageView struct {
	Node, Program string // this node and the version of its program
	At            stamp
	Busy          bool // something changes from moment to moment
	Head          headline
	Facts         []fact
	Images        imagesView
	Behind        behindView
	movesView
	Quiet   bool // nothing waits and nothing is on its way
	Pods    podsView
	Members membersView
	Events  []eventRow

	Version string        // of page.html and what it loads
	Main    template.HTML // the template "main", executed
}

// movesView is what is on its way between nodes, and was.
type movesView struct {
	Transfers transfersView
	Rollouts  rolloutsView
	Flows     flowsView
	Traffic   trafficView
}

// headline says in one sentence how it stands.
type headline struct {
	Class, Sign, Text string
	Detail            string
	Command           string // what to do about it
	Also              []string
}

type fact struct{ Name, Value, Detail, Class string }

func newPageView(l *look, q pageQuery, detail func(report.ImageState) report.ImageDetail) *pageView {
	rows := announcedRows(l.images.Images)
	v := &pageView{
		Node: cleanName(l.status.Node), Program: cleanText(l.status.Version, maxName), At: stampOf(l.at, l.at),
		Images: newImagesView(rows, q, detail), Behind: newBehindView(rows),
		movesView: movesView{
			Transfers: newTransfersView(rows, l.status.Node), Rollouts: newRolloutsView(rows, l.at),
			Flows: newFlowsView(rows), Traffic: newTrafficView(l.traffic),
		},
		Members: newMembersView(l.members.Members, l.status.ID, l.at), Events: newEventRows(l),
	}
	v.Pods = newPodsView(l.pods, rows)
	v.Quiet = len(v.Behind.First) == 0 && v.Transfers.Count == 0 && len(v.Pods.Rows) == 0
	v.Head = newHeadline(l, rows)
	v.Facts = newFacts(l, v.Members)
	v.Busy = v.Transfers.Count > 0 || v.Head.Class == "busy"
	return v
}

// announcedRows are the rows that are shown: what is withdrawn is not.
func announcedRows(all []report.ImageState) []report.ImageState {
	rows := make([]report.ImageState, 0, len(all))
	for _, img := range all {
		if img.State != "withdrawn" {
			rows = append(rows, img)
		}
	}
	return rows
}

// newHeadline says what the verdict is, its first finding in words.
func newHeadline(l *look, rows []report.ImageState) headline {
	v := verdict.Decide(verdict.Input{Status: l.status, Members: l.members.Members, Images: rows, Err: l.err})
	switch {
	case v.Level == verdict.Green && len(rows) == 0:
		return headline{Class: "idle", Sign: "–", Text: "Nothing is announced yet", Detail: "On a host that has the image:", Command: "seeder announce REF"}
	case v.Level == verdict.Green:
		return headline{Class: "good", Sign: "✓", Text: allReady(len(rows), l.status.Members)}
	}
	first := v.Findings[0]
	h := headline{Class: "bad", Sign: "!", Command: cleanText(first.Command, maxReference)}
	h.Text = cleanText(findingText(first), maxReason)
	if v.Level == verdict.Amber {
		h.Class = "warn"
	}
	done := 0
	for _, img := range rows {
		if img.Settled() {
			done++
		}
	}
	ready := fmt.Sprintf("%d of %s ready on every node", done, countOf(len(rows), "image is", "images are"))
	switch {
	case first.About == verdict.AboutImage && first.Level == verdict.Amber: // on its way: nothing is wrong
		return headline{Class: "busy", Sign: "↓", Text: ready, Detail: behindCounts(rows)}
	case done < len(rows):
		h.Detail = strings.TrimSuffix(ready+". "+behindCounts(rows), " ")
	case len(rows) > 0:
		h.Detail = fmt.Sprintf("All that is announced is ready on the %s alive.", countOf(l.status.Members, "node that is", "nodes that are"))
	}
	for _, f := range v.Findings[1:min(len(v.Findings), maxHeadFindings)] {
		if f.About != verdict.AboutImage {
			h.Also = append(h.Also, cleanText(findingText(f), maxReason))
		}
	}
	return h
}

// maxHeadFindings is how much of what is wrong the headline says.
const maxHeadFindings = 6

// findingText is a finding with its time in UTC, as all times of the page.
func findingText(f verdict.Finding) string {
	since := f.Since
	f.Since = time.Time{}
	if f.About == verdict.AboutImage || f.About == verdict.AboutPods {
		f.Subject = cli.ShortRef(f.Subject)
	}
	text := f.String()
	if !since.IsZero() {
		text += " since " + since.UTC().Format(time.DateTime) + " UTC"
	}
	if f.Subject == "" {
		text = upperFirst(text)
	}
	return text
}

func upperFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

func allReady(images, members int) string {
	switch {
	case members == 1 && images == 1:
		return "The image is ready on this node, the only member"
	case members == 1:
		return fmt.Sprintf("All %d images are ready on this node, the only member", images)
	case images == 1:
		return "The image is ready on every node"
	}
	return fmt.Sprintf("All %d images are ready on every node", images)
}

// countOf is a number and what it counts.
func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// behindCounts says how many nodes are in which state for some image.
func behindCounts(rows []report.ImageState) string {
	states := map[report.State]int{}
	seen := map[report.State]map[string]bool{}
	for _, img := range rows {
		for _, n := range img.Nodes {
			if n.State == report.Excluded || n.Away || seen[n.State][n.Name] {
				continue
			}
			if seen[n.State] == nil {
				seen[n.State] = map[string]bool{}
			}
			seen[n.State][n.Name] = true
			states[n.State]++
		}
	}
	if text := stateCounts(states, 0); text != "" {
		return "Nodes: " + text
	}
	return ""
}

// stateOrder is the order in which states are told: what wants attention first.
var stateOrder = []report.State{report.Failed, report.Unreachable, report.Waiting, report.Fetching, report.Importing, report.Excluded}

func stateCounts(states map[report.State]int, dead int) string {
	var parts []string
	for _, s := range stateOrder {
		if n := states[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	if dead > 0 {
		parts = append(parts, fmt.Sprintf("%d dead", dead))
	}
	return strings.Join(parts, ", ")
}

func newFacts(l *look, members membersView) []fact {
	s := l.status
	images := fact{"Images on this host", fmt.Sprintf("%d of %d ready", s.Images.Ready, s.Images.Total), "", ""}
	if s.Images.Total == 0 {
		images.Value = "none announced"
	}
	containerd := fact{"containerd", "answers", cleanText(strings.TrimSpace(s.Containerd.Version+" "+s.Containerd.Address), maxReference), ""}
	if !s.Containerd.OK {
		containerd.Value, containerd.Class = "! does not answer", "bad"
	}
	alive := fact{"Members", fmt.Sprintf("%d alive", s.Members), members.Gone, ""}
	if members.Gone != "" {
		alive.Class = "warn"
	}
	return []fact{alive, images, containerd, {"Free on disk", term.Bytes(s.Disk.FreeBytes), "data_dir; frame cache " + term.Bytes(s.Disk.CacheBytes) + " of " + term.Bytes(s.Disk.CacheLimitBytes), ""}}
}
