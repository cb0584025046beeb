package p2p

import (
	"sync"
	"time"

	"seeder/p2p/report"
)

const (
	// trafficSlot and trafficSlots are ten minutes of traffic: what an operator looks back
	// on, in 2 KiB.
	trafficSlot  = 5 * time.Second
	trafficSlots = 120
)

// traffic is how many bytes came and went of late. The zero value is ready; it is safe for
// concurrent use.
type traffic struct {
	mu      sync.Mutex
	slot    int64 // number of the newest slot
	in, out [trafficSlots]int64
}

// add records bytes of this moment.
func (t *traffic) add(now time.Time, in, out int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(now)
	t.in[t.slot%trafficSlots] += in
	t.out[t.slot%trafficSlots] += out
}

// advance empties the slots that begin until now. The mutex is held.
func (t *traffic) advance(now time.Time) {
	slot := now.UnixNano() / int64(trafficSlot)
	for n := max(t.slot+1, slot-trafficSlots+1); n <= slot; n++ {
		t.in[n%trafficSlots], t.out[n%trafficSlots] = 0, 0
	}
	t.slot = max(t.slot, slot)
}

func (t *traffic) report(now time.Time) report.Traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(now)
	r := report.Traffic{Slot: trafficSlot}
	for i := range int64(trafficSlots) {
		n := (t.slot + 1 + i) % trafficSlots
		r.In, r.Out = append(r.In, t.in[n]), append(r.Out, t.out[n])
	}
	return r
}
