package p2p

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// FuzzDecodeReport: whatever a node says of itself, it is shown as one of the known
// states, within bounds, and cannot write on a terminal.
func FuzzDecodeReport(f *testing.F) {
	for _, r := range []report{
		{Name: "n", Images: []reportImage{{Reference: "a", Version: 1, State: Ready, DoneBytes: 5, TotalBytes: 5}}},
		{Images: []reportImage{{State: "\x1b[2J", DoneBytes: -1, TotalBytes: -1, Reason: "\x1b[2J" + strings.Repeat("x", 600)}}},
	} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	known := []State{Waiting, Fetching, Importing, Ready, Failed, Excluded}
	f.Fuzz(func(t *testing.T, b []byte) {
		ans, err := decodeReport("n", b)
		if err != nil {
			return
		}
		for _, img := range ans.images {
			if !slices.Contains(known, img.State) || img.DoneBytes < 0 || img.DoneBytes > img.TotalBytes {
				t.Fatalf("%+v", img)
			}
			if len(img.Reason) > maxReasonBytes+len("…") || strings.ContainsFunc(img.Reason, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("reason %q", img.Reason)
			}
		}
	})
}
