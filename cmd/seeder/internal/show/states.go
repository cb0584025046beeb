package show

import (
	"fmt"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p"
)

// sourceNames are where bytes came from, the largest first, at most as many.
func sourceNames(sources []p2p.Source, most int) string {
	var names []string
	for _, s := range sources {
		names = append(names, term.Clean(s.Name))
	}
	return some(names, most)
}

// maxSourceNames is how many sources a line names.
const maxSourceNames = 4

// from is "from h1, h3, local", "" where nothing came.
func from(sources []p2p.Source) string {
	if len(sources) == 0 {
		return ""
	}
	return "from " + sourceNames(sources, maxSourceNames)
}

func stateColour(s p2p.State) string {
	switch s {
	case p2p.Ready:
		return term.Green
	case p2p.Fetching, p2p.Importing:
		return term.Yellow
	case p2p.Failed, p2p.Unreachable:
		return term.Red
	}
	return term.Faint
}

// StateText is a state with its progress, as "fetching 43%".
func StateText(n p2p.NodeState) string {
	if n.State == p2p.Ready && n.Blocked != "" {
		return "ready, blocked"
	}
	if n.State == p2p.Fetching {
		return fmt.Sprintf("%s %d%%", n.State, term.Percent(n.DoneBytes, n.TotalBytes))
	}
	return term.Clean(string(n.State))
}

// short is the short form of a reference that came from another node.
func short(ref string) string { return term.Clean(cli.ShortRef(ref)) }
