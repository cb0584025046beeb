package show

import (
	"fmt"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
)

// SavedLines say what was saved. took is how long it took from the announcement until all
// were ready, 0 where that was not measured; here is whether this host announced it.
func SavedLines(s control.Saved, took time.Duration, here bool) []string {
	if s.Nodes == 0 {
		if s.Had > 0 {
			return []string{"nothing was fetched: " + term.Plural(s.Had, "other node") + " had all of it"}
		}
		return nil
	}
	got := fmt.Sprintf("%s got %s", term.Plural(s.Nodes, "node"), term.Bytes(s.MostBytes))
	switch {
	case s.Nodes == 1:
	case term.Bytes(s.LeastBytes) == term.Bytes(s.MostBytes):
		got += " each"
	default:
		got = fmt.Sprintf("%s got %s in all, %s to %s each", term.Plural(s.Nodes, "node"), term.Bytes(s.FetchedBytes), term.Bytes(s.LeastBytes), term.Bytes(s.MostBytes))
	}
	if took > 0 {
		got += " in " + took.Round(10*time.Millisecond).String()
	}
	// From 95 % on it is the frames' own bytes, or those of chunks that came twice.
	if compressed(s) {
		got += fmt.Sprintf(", compressed to %d %%", max(term.Percent(s.WireBytes-s.DeltaBytes, s.FetchedBytes), 1))
	}
	if s.LocalBytes > 0 {
		got += fmt.Sprintf("; %s were there already", term.Bytes(s.LocalBytes))
	}
	if s.Had > 0 {
		got += fmt.Sprintf("; %s fetched nothing", term.Plural(s.Had, "other node"))
	}
	lines := append([]string{got}, whoSent(s, here)...)
	if s.DeltaNodes > 0 {
		lines = append(lines, byDeltas(s))
	}
	return lines
}

// byDeltas says what travelled instead of the layers that were rebuilt.
func byDeltas(s control.Saved) string {
	share := 100 * float64(s.DeltaBytes) / float64(max(s.RebuiltBytes, 1))
	line := fmt.Sprintf("deltas: sent %s instead of %s", term.Bytes(s.DeltaBytes/int64(s.DeltaNodes)), term.Bytes(s.RebuiltBytes/int64(s.DeltaNodes)))
	if s.DeltaNodes > 1 {
		line += " for each of " + term.Plural(s.DeltaNodes, "node")
	}
	return line + fmt.Sprintf(" (%.1f %%)", share)
}

// compressed reports whether much less travelled than arrived.
func compressed(s control.Saved) bool {
	return s.WireBytes > s.DeltaBytes && float64(s.WireBytes-s.DeltaBytes) < 0.95*float64(s.FetchedBytes)
}

// whoSent compares what the announcer sent with what it would have had to send
// alone.
func whoSent(s control.Saved, here bool) []string {
	if s.SentBytes == 0 || s.ImageBytes == 0 {
		return nil
	}
	who := "this host"
	if !here {
		who = term.Clean(s.Announcer)
	}
	line := fmt.Sprintf("%s sent %.1f × the image", who, float64(s.SentBytes)/float64(s.ImageBytes))
	if compressed(s) {
		line += " before compression"
	}
	if rest := term.Percent(s.FetchedBytes-s.SentBytes, s.FetchedBytes); rest > 0 {
		line += fmt.Sprintf(", the other nodes gave each other the rest (%d %%)", rest)
	}
	return []string{line}
}
