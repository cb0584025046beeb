package p2p

import (
	"runtime"
	"strings"
	"testing"
)

// TestReportIsBounded: a report that fits its bound in bytes takes no multiple of it
// in memory, whatever its arrays hold.
func TestReportIsBounded(t *testing.T) { // not parallel: it counts the process's memory
	for name, p := range map[string]string{
		"images":  `{"images":[` + strings.Repeat("{},", 2_000_000) + "{}]}",
		"sources": `{"images":[{"sources":[` + strings.Repeat("{},", 2_000_000) + "{}]}]}",
		"labels":  `{"labels":{` + strings.Repeat(`"":"",`, 1_000_000) + `"":""}}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decodeReport("n", []byte(p))
		runtime.ReadMemStats(&after)
		if name != "labels" && (err == nil || !strings.Contains(err.Error(), "an array of more than")) {
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: %d bytes of text took %d bytes of memory", name, len(p), got)
		}
	}
}
