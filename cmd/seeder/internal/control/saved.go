package control

import (
	"fmt"
	"time"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// Saved is what the nodes have measured of an announcement that has come to its end.
// Bytes are those of chunks as stored, but for WireBytes. What a node forgot, since
// it was started again or much has been announced since, is missing from it.
type Saved struct {
	Announcer string `json:"announcer"` // the node that announced the image
	Nodes     int    `json:"nodes"`     // that are ready and have got bytes from peers
	Had       int    `json:"had"`       // that are ready and have got none, the announcer aside

	ImageBytes   int64 `json:"image_bytes"`   // the most that a node needed
	FetchedBytes int64 `json:"fetched_bytes"` // from peers, over all nodes
	LeastBytes   int64 `json:"least_bytes"`   // of a node that has got some
	MostBytes    int64 `json:"most_bytes"`
	LocalBytes   int64 `json:"local_bytes"` // that those nodes had already
	WireBytes    int64 `json:"wire_bytes"`  // as which FetchedBytes travelled, duplicates too
	SentBytes    int64 `json:"sent_bytes"`  // by the announcer
}

// Savings sums up a row of the matrix. A sum of what nodes say may be anything but
// negative.
func Savings(row report.ImageState) Saved {
	s := Saved{Announcer: row.AnnouncedBy}
	for _, n := range row.Nodes {
		if n.Name == row.AnnouncedBy {
			s.SentBytes = AddBytes(s.SentBytes, n.SentBytes)
		}
		if n.State != report.Ready {
			continue
		}
		var fetched, local int64
		for _, src := range n.Sources {
			if src.Name == report.LocalSource {
				local = AddBytes(local, src.Bytes)
			} else {
				fetched = AddBytes(fetched, src.Bytes)
			}
		}
		if fetched == 0 {
			if n.Name != row.AnnouncedBy {
				s.Had++
			}
			continue
		}
		if s.Nodes == 0 || fetched < s.LeastBytes {
			s.LeastBytes = fetched
		}
		s.Nodes++
		s.MostBytes = max(s.MostBytes, fetched)
		s.ImageBytes = max(s.ImageBytes, n.TotalBytes)
		s.FetchedBytes, s.LocalBytes = AddBytes(s.FetchedBytes, fetched), AddBytes(s.LocalBytes, local)
		s.WireBytes = AddBytes(s.WireBytes, n.WireBytes)
	}
	return s
}

// AddBytes does not overflow: a and b, which are not negative, come from other nodes.
func AddBytes(a, b int64) int64 {
	if sum := a + b; sum >= 0 {
		return sum
	}
	return 1<<63 - 1
}

// Lines say what was saved. took is how long it took from the announcement until all
// were ready, 0 where that was not measured; here is whether this host announced it.
func (s Saved) Lines(took time.Duration, here bool) []string {
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
	if s.compressed() {
		got += fmt.Sprintf(", compressed to %d %%", max(term.Percent(s.WireBytes, s.FetchedBytes), 1))
	}
	if s.LocalBytes > 0 {
		got += fmt.Sprintf("; %s were there already", term.Bytes(s.LocalBytes))
	}
	if s.Had > 0 {
		got += fmt.Sprintf("; %s fetched nothing", term.Plural(s.Had, "other node"))
	}
	return append([]string{got}, s.whoSent(here)...)
}

// compressed reports whether much less travelled than arrived.
func (s Saved) compressed() bool {
	return s.WireBytes > 0 && float64(s.WireBytes) < 0.95*float64(s.FetchedBytes)
}

// whoSent compares what the announcer sent with what it would have had to send
// alone.
func (s Saved) whoSent(here bool) []string {
	if s.SentBytes == 0 || s.ImageBytes == 0 {
		return nil
	}
	who := "this host"
	if !here {
		who = term.Clean(s.Announcer)
	}
	line := fmt.Sprintf("%s sent %.1f × the image", who, float64(s.SentBytes)/float64(s.ImageBytes))
	if s.compressed() {
		line += " before compression"
	}
	if rest := term.Percent(s.FetchedBytes-s.SentBytes, s.FetchedBytes); rest > 0 {
		line += fmt.Sprintf(", the other nodes gave each other the rest (%d %%)", rest)
	}
	return []string{line}
}
