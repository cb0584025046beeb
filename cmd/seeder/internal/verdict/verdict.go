// Package verdict decides how a node and its cluster are: red, amber or green, and why.
//
// It owns the one rule behind the colour of the status page, of `seeder status`, the
// answer of /readyz and the metric seeder_state, so that none of them is green where
// another is not. It is a pure function of what the node knows; it asks nobody and keeps
// nothing.
//
// Invariant: green means that nothing is wrong: containerd answers, the cluster is
// joined, no known member is away, and every image that was looked at is ready on every
// node that is meant to hold it.
package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/p2p/report"
)

// Level is how bad it is.
type Level string

// The levels, the best first.
const (
	Green Level = "green" // nothing is wrong
	Amber Level = "amber" // something is under way, or missing
	Red   Level = "red"   // something has failed and needs attention
)

// Value is the level as a number: 0 green, 1 amber, 2 red.
func (l Level) Value() int { return slices.Index([]Level{Green, Amber, Red}, l) }

// What a finding is about.
const (
	AboutCluster    = "cluster"
	AboutContainerd = "containerd"
	AboutJoin       = "join"
	AboutMember     = "member"
	AboutConflict   = "conflict"
	AboutImage      = "image"
	AboutPods       = "pods" // of an image, which the kubelet refuses to start
)

// Finding is one thing that is not as it should be. Its texts may come from other nodes
// and are not escaped.
type Finding struct {
	Level   Level     `json:"level"`
	About   string    `json:"about"`
	Subject string    `json:"subject,omitempty"` // the member or image
	Text    string    `json:"text"`              // without the subject and without since when
	Since   time.Time `json:"since,omitzero"`
	Command string    `json:"command,omitempty"` // to run, on this host unless it says otherwise

	// Blocks says that this host cannot do its work until it is over.
	Blocks bool `json:"-"`
}

// Verdict is the answer: the worst level, and the findings, the most urgent first.
type Verdict struct {
	Level    Level     `json:"level"`
	Findings []Finding `json:"findings"`
}

// Input is what a node knows.
type Input struct {
	Status  report.Status
	Members []report.MemberState
	// Images are the rows of the matrix, nil where only this node's own images are
	// looked at, which Status counts. Err is why they could not be asked for.
	Images []report.ImageState
	Err    error
}

// HasNotAnswered is the text of a finding about a member that is away.
const HasNotAnswered = "has not answered"

// maxImages bounds the findings about images; more are counted in the last one.
const maxImages = 20

// Decide says how it is.
func Decide(in Input) Verdict {
	v := Verdict{Level: Green, Findings: []Finding{}}
	add := func(list ...Finding) { v.Findings = append(v.Findings, list...) }
	if in.Err != nil {
		add(Finding{Level: Red, About: AboutCluster, Text: "the members cannot be asked: " + in.Err.Error(), Command: "seeder doctor"})
	}
	add(ofHost(in.Status)...)
	add(ofConflicts(in.Status.Conflicts)...)
	add(ofMembers(slices.DeleteFunc(slices.Clone(in.Members), func(m report.MemberState) bool {
		return slices.ContainsFunc(in.Status.Conflicts, func(c report.Conflict) bool { return strings.HasPrefix(m.Reason, c.Reason()) })
	}))...)
	if in.Images != nil {
		add(ofRows(in.Images)...)
	} else {
		add(ofCounts(in.Status.Images)...)
	}
	slices.SortStableFunc(v.Findings, func(a, b Finding) int { return b.Level.Value() - a.Level.Value() })
	if len(v.Findings) > 0 {
		v.Level = v.Findings[0].Level
	}
	return v
}

// Blocking are the findings that keep this host from its work.
func (v Verdict) Blocking() []Finding {
	return slices.DeleteFunc(slices.Clone(v.Findings), func(f Finding) bool { return !f.Blocks })
}

// ofHost is about this host's containerd and its way into the cluster.
func ofHost(s report.Status) (out []Finding) {
	switch c := s.Containerd; {
	case c.OK:
	case c.Reason == "":
		out = append(out, Finding{Level: Amber, About: AboutContainerd, Text: "containerd has not answered yet", Since: c.Since, Blocks: true})
	default:
		out = append(out, Finding{Level: Red, About: AboutContainerd, Text: "this host waits for containerd: " + c.Reason, Since: c.Since,
			Command: "seeder doctor", Blocks: true})
	}
	switch j := s.Join; {
	case j.OK:
	case j.Refused:
		out = append(out, Finding{Level: Red, About: AboutJoin, Text: "this host cannot join the cluster: " + j.Reason, Since: j.Since,
			Command: "seeder doctor", Blocks: true})
	default:
		out = append(out, Finding{Level: Amber, About: AboutJoin, Text: "this host is alone and cannot join the others: " + j.Reason, Since: j.Since,
			Command: "seeder doctor"})
	}
	return out
}

// ofConflicts is about hosts that cannot be told apart. It is all that is said of the
// second, which is a member with a reason besides.
func ofConflicts(list []report.Conflict) (out []Finding) {
	for _, c := range list {
		out = append(out, Finding{Level: Red, About: AboutConflict, Text: c.Reason(), Command: c.Fix(), Blocks: c.Self})
	}
	return out
}

// ofMembers is about the others. One that left is none of them any more.
func ofMembers(members []report.MemberState) (refused []Finding) {
	var away []Finding
	for _, m := range members {
		switch {
		case m.State == "left":
		case m.State != "alive":
			away = append(away, Finding{Level: Amber, About: AboutMember, Subject: m.Name, Text: HasNotAnswered, Since: m.Since,
				Command: "systemctl status seeder  # on " + m.Name + "; if it will not come back: seeder members forget " + m.Name})
		case m.Reason != "":
			refused = append(refused, Finding{Level: Amber, About: AboutMember, Subject: m.Name, Text: m.Reason, Since: m.Since, Command: "seeder doctor"})
		}
	}
	return append(refused, away...)
}

// ofRows is about every announced image on every node.
func ofRows(rows []report.ImageState) (failed []Finding) {
	var behind []Finding
	for _, row := range rows {
		if row.State == "withdrawn" {
			continue
		}
		for _, n := range row.Nodes {
			if n.Blocked != "" && n.State == report.Ready {
				behind = append(behind, Finding{Level: Amber, About: AboutPods, Subject: row.Reference, Text: "is ready on " + n.Name + ", but " + n.Blocked})
				break
			}
		}
		if row.Everywhere() {
			continue
		}
		f := Finding{Level: Amber, About: AboutImage, Subject: row.Reference, Command: "seeder images " + cli.ShortRef(row.Reference)}
		for _, n := range row.Nodes {
			if n.State == report.Failed {
				f.Level, f.Text = Red, fmt.Sprintf("failed on %s: %s", n.Name, n.Reason)
				failed = append(failed, f)
				break
			}
		}
		if f.Level == Amber && !row.Settled() { // who is away is said of the member
			f.Text = fmt.Sprintf("is ready on %d of %d nodes", row.Ready, row.Total)
			behind = append(behind, f)
		}
	}
	return bounded(append(failed, behind...))
}

// bounded keeps so many findings, and counts the rest in the last one.
func bounded(list []Finding) []Finding {
	if len(list) <= maxImages {
		return list
	}
	rest := list[maxImages-1:]
	last := Finding{Level: rest[0].Level, About: AboutImage, Text: fmt.Sprintf("%d more images are not ready everywhere", len(rest)), Command: "seeder images"}
	return append(list[:maxImages-1:maxImages-1], last)
}

// ofCounts is about this host's own images.
func ofCounts(c report.ImageCount) (out []Finding) {
	if c.Failed > 0 {
		out = append(out, Finding{Level: Red, About: AboutImage, Text: fmt.Sprintf("%d of %d images failed on this host", c.Failed, c.Total), Command: "seeder images"})
	}
	if behind := c.Total - c.Ready - c.Failed; behind > 0 {
		out = append(out, Finding{Level: Amber, About: AboutImage, Text: fmt.Sprintf("%d of %d images are not ready on this host yet", behind, c.Total)})
	}
	return out
}

// String is the finding as one sentence, without the command.
func (f Finding) String() string {
	s := f.Text
	if f.Subject != "" {
		s = f.Subject + " " + s
	}
	since := f.Since.Local().Format(time.DateTime)
	switch {
	case f.Since.IsZero():
		return s
	case f.About == AboutMember && f.Text == HasNotAnswered:
		return s + " since " + since
	}
	return s + " (since " + since + ")"
}
