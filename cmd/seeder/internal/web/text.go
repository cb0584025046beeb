package web

import (
	"strings"
	"time"
	"unicode"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
	safe "seeder/internal/text"
	"seeder/p2p/report"
)

// How much of a text of another node the page shows, in characters. Gossip and the
// catalog take names of 128 bytes and references of 512.
const (
	maxName      = 64
	maxReference = 160
	maxReason    = 400
)

// cleanText makes text of another node fit to stand on a page among other text: one
// line, at most most characters, and nothing invisible in it: control characters,
// those that turn the direction of what follows, unassigned ones. The template
// isolates and escapes the rest.
func cleanText(s string, most int) string {
	var b strings.Builder
	count, marks := 0, 0
	for _, r := range safe.Clean(s, len(s)) {
		if count == most {
			b.WriteRune('…')
			break
		}
		switch {
		case unicode.Is(unicode.M, r):
			if marks++; marks > 2 { // a tower of accents covers other lines
				continue
			}
		default:
			marks = 0
		}
		b.WriteRune(r)
		count++
	}
	return b.String()
}

func cleanRef(ref string) string { return cleanText(cli.ShortRef(ref), maxReference) }

func cleanName(name string) string { return cleanText(name, maxName) }

// names is a list of at most most names and how many more there are.
type names struct {
	Names []string
	More  int
}

func namesOf(all []string, count, most int, clean func(string) string) names {
	var n names
	for _, s := range all[:min(len(all), most)] {
		n.Names = append(n.Names, clean(s))
	}
	n.More = max(count-len(n.Names), 0)
	return n
}

// stamp is a moment for people and for programs.
type stamp struct{ Text, UTC, ISO string }

func stampOf(t, now time.Time) stamp {
	t = t.UTC()
	s := stamp{Text: term.Ago(t), UTC: t.Format(time.DateTime), ISO: t.Format(time.RFC3339)}
	if t.Format(time.DateOnly) == now.UTC().Format(time.DateOnly) {
		s.UTC = t.Format(time.TimeOnly)
	}
	return s
}

// mark is a state as a sign, for those who do not see the colour, and as the class
// that colours it.
type mark struct{ Sign, Class, Text string }

func markOf(n report.NodeState) mark {
	m := mark{Text: show.StateText(n)}
	switch n.State {
	case report.Ready:
		if n.Blocked != "" {
			return mark{"!", "waiting", m.Text}
		}
		m.Sign, m.Class = "✓", "ready"
	case report.Fetching:
		m.Sign, m.Class = "↓", "fetching"
	case report.Importing:
		m.Sign, m.Class = "»", "importing"
	case blocked:
		m.Sign, m.Class = "!", "waiting"
	case report.Failed:
		m.Sign, m.Class = "!", "failed"
	case report.Excluded:
		m.Sign, m.Class = "–", "excluded"
	case report.Unreachable:
		m.Sign, m.Class = "?", "unreachable"
	default:
		m.Sign, m.Class, m.Text = "…", "waiting", string(report.Waiting)
	}
	return m
}
