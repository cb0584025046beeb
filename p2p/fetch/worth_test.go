package fetch

import (
	"testing"
	"time"

	"seeder/store/chunk"
)

// TestWorth: a delta is used only where it is there clearly sooner.
func TestWorth(t *testing.T) {
	t.Parallel()
	const mb = 1_000_000
	slow := worth{missing: 130 * mb, layer: 130 * mb, delta: mb, raw: 3 * mb, wire: 3 * mb, rebuild: 15 * mb}
	for name, test := range map[string]struct {
		change func(*worth)
		want   bool
	}{
		"a slow link":                 {func(*worth) {}, true},
		"it is being made":            {func(w *worth) { w.after, w.delta = 12*time.Second, 0 }, true},
		"it takes longer to be made":  {func(w *worth) { w.after = 30 * time.Second }, false},
		"no rate is known":            {func(w *worth) { w.raw, w.wire = 0, 0 }, false},
		"a fast link":                 {func(w *worth) { w.raw, w.wire = 110*mb, 110*mb }, false},
		"a fast link, a fast rebuild": {func(w *worth) { w.raw, w.wire, w.rebuild = 110*mb, 110*mb, 1000*mb }, true},
		"little is missing":           {func(w *worth) { w.missing = 20 * mb }, false},
		"a small layer":               {func(w *worth) { w.missing, w.layer = 2*mb, 2*mb }, false},
		"a delta of a third":          {func(w *worth) { w.delta = 43 * mb }, true},
		"a delta of all":              {func(w *worth) { w.delta = 130 * mb }, false},
	} {
		w := slow
		if test.change(&w); w.pays() != test.want {
			t.Errorf("%s: pays %v, want %v: whole %s, as a delta %s", name, w.pays(), test.want, w.whole(), w.byDelta())
		}
	}
}

// TestMeter: a rate is one of a second and a mebibyte, without the time before the first
// chunk and after a pause.
func TestMeter(t *testing.T) {
	t.Parallel()
	var l links
	m := &meter{links: &l}
	now := time.Now()
	m.received(now, 9<<20, 9<<20)
	m.received(now.Add(500*time.Millisecond), 1<<20, 1<<19)
	if raw, _, _ := l.rates(chunk.DeltaBytes); raw != 0 {
		t.Errorf("a rate of %.0f after half a second", raw)
	}
	m.received(now.Add(2*time.Second), 3<<20, 3<<19)
	if raw, wire, _ := l.rates(chunk.DeltaBytes); raw != 2<<20 || wire != 1<<20 {
		t.Errorf("%.0f and %.0f bytes a second, want 2 MiB and 1 MiB", raw, wire)
	}
	m.pause()
	m.received(now.Add(time.Hour), 1<<20, 1<<20)
	m.received(now.Add(time.Hour+time.Second), 8<<20, 8<<20)
	if raw, _, _ := l.rates(chunk.DeltaBytes); raw != 8<<20 {
		t.Errorf("%.0f bytes a second after a pause, want 8 MiB", raw)
	}
	l.rebuilt(chunk.DeltaDeflate, 30<<20, 2*time.Second)
	if _, _, rebuild := l.rates(chunk.DeltaDeflate); rebuild != 15<<20 {
		t.Errorf("rebuilds %.0f bytes a second, want 15 MiB", rebuild)
	}
}
