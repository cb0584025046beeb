package matrix

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"seeder/p2p/report"
)

// TestReportIsBounded: a report that fits its bound in bytes takes no multiple of it
// in memory, whatever its arrays hold, and of what was not asked for nothing.
func TestReportIsBounded(t *testing.T) { // not parallel: it counts the process's memory
	var many strings.Builder
	for i := range 49_000 {
		fmt.Fprintf(&many, `{"ref":"r%d","state":"ready","reason":"%0200d","sources":[%s{}]},`, i, i, strings.Repeat("{},", 5))
	}
	for name, c := range map[string]struct {
		text, err string
	}{
		"images":    {`{"images":[` + strings.Repeat("{},", 2_000_000) + "{}]}", "more than 65536 images"},
		"sources":   {`{"images":[{"sources":[` + strings.Repeat("{},", 2_000_000) + "{}]}]}", "64 KiB"},
		"labels":    {`{"labels":{` + strings.Repeat(`"":"",`, 1_000_000) + `"":""}}`, "64 KiB"},
		"unknown":   {`{"x":"` + strings.Repeat("y", 1_000_000) + `"}`, "64 KiB"},
		"not asked": {`{"images":[` + many.String() + `{}]}`, ""},
	} {
		var before, after runtime.MemStats
		var total atomic.Int64
		total.Store(maxAnswersBytes)
		runtime.GC()
		runtime.ReadMemStats(&before)
		ans, err := decodeReport(strings.NewReader(c.text), "n", func(ref string) bool { return ref == "r7" }, &total)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		if name == "not asked" && (len(ans.images) != 1 || ans.images["r7"].State != report.Ready) {
			t.Errorf("%d images are kept, want the one", len(ans.images))
		}
		if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 1<<20 {
			t.Errorf("%s: of %d bytes of text %d are kept", name, len(c.text), got)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: %d bytes of text took %d bytes of memory", name, len(c.text), got)
		}
	}
}

// TestAnswersAreBoundedTogether: many members cannot answer more than one bound.
func TestAnswersAreBoundedTogether(t *testing.T) {
	t.Parallel()
	var total atomic.Int64
	total.Store(10_000)
	body := `{"name":"n","images":[{"ref":"r","reason":"` + strings.Repeat("x", 3000) + `"}]}`
	for i := range 4 {
		_, err := decodeReport(strings.NewReader(body), "n", func(string) bool { return true }, &total)
		if want := i < 3; (err == nil) != want {
			t.Errorf("answer %d: %v", i, err)
		}
	}
}
