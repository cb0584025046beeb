package show

import (
	"fmt"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// sourceNames are where bytes came from, the largest first, at most as many.
func sourceNames(sources []report.Source, most int) string {
	var names []string
	for _, s := range sources {
		names = append(names, term.Clean(s.Name))
	}
	return some(names, most)
}

// maxSourceNames is how many sources a line names.
const maxSourceNames = 4

// from is "from h1, h3, local", "" where nothing came.
func from(sources []report.Source) string {
	if len(sources) == 0 {
		return ""
	}
	return "from " + sourceNames(sources, maxSourceNames)
}

func stateColour(s report.State) string {
	switch s {
	case report.Ready:
		return term.Green
	case report.Fetching, report.Importing:
		return term.Yellow
	case report.Failed, report.Unreachable:
		return term.Red
	}
	return term.Faint
}

// StateText is a state with its progress, as "fetching 43%".
func StateText(n report.NodeState) string {
	if n.State == report.Ready && n.Blocked != "" {
		return "ready, blocked"
	}
	if n.State == report.Fetching {
		return fmt.Sprintf("%s %d%%", n.State, term.Percent(n.DoneBytes, n.TotalBytes))
	}
	return term.Clean(string(n.State))
}

// short is the short form of a reference that came from another node.
func short(ref string) string { return term.Clean(cli.ShortRef(ref)) }
