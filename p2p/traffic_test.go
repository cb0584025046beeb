package p2p

import (
	"slices"
	"testing"
	"time"
)

// TestTraffic: ten minutes are kept, in and out apart, and what is older is gone.
func TestTraffic(t *testing.T) {
	t.Parallel()
	var x traffic
	start := time.Unix(1_800_000_000, 0)
	x.add(start, 5, 0)
	x.add(start.Add(time.Second), 1, 7)
	x.add(start.Add(trafficSlot), 2, 0)
	r := x.report(start.Add(trafficSlot))
	if n := len(r.In); n != trafficSlots || len(r.Out) != n || r.In[n-2] != 6 || r.In[n-1] != 2 || r.Out[n-2] != 7 || r.Slot != trafficSlot {
		t.Errorf("%+v", r)
	}
	r = x.report(start.Add(trafficSlots * trafficSlot))
	if r.In[0] != 2 || slices.Max(r.Out) != 0 {
		t.Errorf("after ten minutes: %+v", r)
	}
	x.add(start.Add(24*time.Hour), 3, 0)
	if r = x.report(start.Add(24 * time.Hour)); r.In[trafficSlots-1] != 3 || slices.Max(r.In[:trafficSlots-1]) != 0 {
		t.Errorf("after a day: %+v", r)
	}
}
