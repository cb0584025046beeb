package control

import (
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
)

// Saved is what the nodes have measured of an announcement that has come to its end.
// Bytes are those of chunks as stored, but for WireBytes. What a node forgot, since
// it was started again or much has been announced since, is missing from it.
type Saved struct {
	Announcer string `json:"announcer"` // the node that announced the image
	Nodes     int    `json:"nodes"`     // that are ready and have got bytes from peers, or deltas
	Had       int    `json:"had"`       // that are ready and have got none, the announcer aside

	ImageBytes   int64 `json:"image_bytes"`   // the most that a node needed
	FetchedBytes int64 `json:"fetched_bytes"` // from peers, over all nodes
	LeastBytes   int64 `json:"least_bytes"`   // of a node that has got some
	MostBytes    int64 `json:"most_bytes"`
	LocalBytes   int64 `json:"local_bytes"` // that those nodes had already
	WireBytes    int64 `json:"wire_bytes"`  // as which FetchedBytes travelled, duplicates too
	SentBytes    int64 `json:"sent_bytes"`  // by the announcer

	// What came as deltas, over the nodes that got some of it.
	DeltaNodes   int   `json:"delta_nodes,omitempty"`
	RebuiltBytes int64 `json:"rebuilt_bytes,omitempty"` // of layers that were made from others
	DeltaBytes   int64 `json:"delta_bytes,omitempty"`   // of WireBytes, those of the deltas
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
			switch src.Name {
			case report.LocalSource:
				local = AddBytes(local, src.Bytes)
			case report.DeltaSource: // RebuiltBytes
			default:
				fetched = AddBytes(fetched, src.Bytes)
			}
		}
		if n.RebuiltBytes > 0 {
			s.DeltaNodes++
			s.RebuiltBytes, s.DeltaBytes = AddBytes(s.RebuiltBytes, n.RebuiltBytes), AddBytes(s.DeltaBytes, n.DeltaBytes)
		}
		if fetched == 0 && n.RebuiltBytes == 0 {
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

// Judged is `seeder status -o json`: the status and what it means.
type Judged struct {
	report.Status
	verdict.Verdict
}
