package matrix

import (
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"seeder/p2p/report"
)

// FuzzDecodeReport: whatever a node says of itself, it is shown as one of the known
// states, within bounds, and cannot write on a terminal.
func FuzzDecodeReport(f *testing.F) {
	for _, r := range []column{
		{Name: "n", Images: []columnImage{{Reference: "a", Version: 1, State: report.Ready, progress: progress{5, 5}}}},
		{Host: &report.Host{Containerd: "\x1b[2J", FreeBytes: 5, DiskBytes: -1}, Images: []columnImage{{State: "\x1b[2J", progress: progress{-1, -1}, Reason: "\x1b[2J" + strings.Repeat("x", 600),
			RateBytesPerSecond: -1, WireBytes: -1, TookMS: -1, SentBytes: -1, Sources: []report.Source{{Name: "\x1b[2J" + strings.Repeat("x", 600), Bytes: 1}, {Name: "a", Bytes: -1}}}}},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	known := []report.State{report.Waiting, report.Fetching, report.Importing, report.Ready, report.Failed, report.Excluded}
	f.Fuzz(func(t *testing.T, b []byte) {
		ans, err := decode(string(b))
		if err != nil {
			return
		}
		if h := ans.host; h != nil && (h.FreeBytes < 0 || h.FreeBytes > h.DiskBytes || strings.ContainsFunc(h.Containerd+h.ContainerdAway, func(r rune) bool { return r < ' ' || r == 0x7f })) {
			t.Fatalf("%+v", h)
		}
		for _, img := range ans.images {
			if img.TookMS < 0 {
				t.Fatalf("%+v", img)
			}
			if !slices.Contains(known, img.State) || img.DoneBytes < 0 || img.DoneBytes > img.TotalBytes {
				t.Fatalf("%+v", img)
			}
			if img.RateBytesPerSecond < 0 || img.WireBytes < 0 || img.SentBytes < 0 || len(img.Sources) > maxSources {
				t.Fatalf("%+v", img)
			}
			texts := []string{img.Reason}
			for _, s := range img.Sources {
				if s.Bytes <= 0 {
					t.Fatalf("source %+v", s)
				}
				texts = append(texts, s.Name)
			}
			for _, s := range texts {
				if len(s) > report.MaxTextBytes+len("…") || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
					t.Fatalf("text %q", s)
				}
			}
		}
	})
}

// decode reads a report that was asked for all images.
func decode(s string) (answer, error) {
	var total atomic.Int64
	total.Store(maxAnswersBytes)
	return decodeReport(strings.NewReader(s), "n", func(string) bool { return true }, &total)
}
