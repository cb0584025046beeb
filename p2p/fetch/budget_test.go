package fetch

import (
	"testing"
	"time"
)

// TestBudget: the time for which the link is idle because chunks are held back is at most a
// share of what the image takes. What comes meanwhile is not idle, and what is rebuilt makes up
// for what was lost.
func TestBudget(t *testing.T) {
	t.Parallel()
	const rate = 1_000_000.0 // bytes a second: the image takes 100 s, so the budget is 4 s
	const image = 100_000_000
	for name, test := range map[string]struct {
		holding bool
		after   []came // readings, a second apart
		idle    time.Duration
	}{
		"nothing is held back":                             {false, []came{{}, {}}, 0},
		"nothing comes":                                    {true, []came{{}, {}}, 2 * time.Second},
		"other layers come":                                {true, []came{{here: 1_000_000}, {here: 2_000_000}}, 0},
		"other layers come half as fast":                   {true, []came{{here: 500_000}, {here: 1_000_000}}, time.Second},
		"a delta comes":                                    {true, []came{{delta: 1_000_000}, {delta: 2_000_000}}, 0},
		"a layer is rebuilt":                               {true, []came{{}, {here: 9_000_000, rebuilt: 9_000_000}}, 0},
		"a layer is rebuilt slowly":                        {true, []came{{}, {here: 500_000, rebuilt: 500_000}}, 1500 * time.Millisecond},
		"what is rebuilt first does not add to the budget": {true, []came{{here: 50_000_000, rebuilt: 50_000_000}, {here: 50_000_000, rebuilt: 50_000_000}}, time.Second},
		"one layer is rebuilt, one comes":                  {true, []came{{}, {here: 10_000_000, rebuilt: 9_000_000}, {here: 11_000_000, rebuilt: 9_000_000}}, 0},
	} {
		b := budget{image: image}
		now := time.Now()
		b.read(now, came{}, rate, rate)
		for _, c := range test.after {
			now = now.Add(time.Second)
			b.holding = test.holding
			b.read(now, c, rate, rate)
		}
		ready, pending := b.left(rate)
		if got := 4*time.Second - ready; got != test.idle {
			t.Errorf("%s: it was idle for %s, want %s", name, got, test.idle)
		}
		if got := ready - pending; got != idleRest {
			t.Errorf("%s: %s is kept for deltas that are ready, want %s", name, got, idleRest)
		}
	}
	b := budget{image: image}
	if ready, pending := b.left(0); ready > 0 || pending > 0 {
		t.Errorf("where no rate is known it may be idle for %s and %s", ready, pending)
	}
	if ready, pending := b.left(rate * 100); ready != idleRest || pending != 20*time.Millisecond {
		t.Errorf("of an image that takes a second: %s and %s", ready, pending)
	}
}
