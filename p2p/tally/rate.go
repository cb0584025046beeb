package tally

import "time"

const (
	// rateSlot and rateSlots are the window over which a rate is taken, 10 s: long
	// enough that a slow link, whose bytes are counted once a second, has a steady one.
	rateSlot  = 500 * time.Millisecond
	rateSlots = 20
)

// rate is how many bytes came a second of late. The zero value has begun long ago.
type rate struct {
	start time.Time
	slot  int64 // number of the newest slot
	bytes [rateSlots]int64
}

func (r *rate) add(now time.Time, bytes int64) {
	r.advance(now)
	r.bytes[r.slot%rateSlots] += bytes
}

// advance empties the slots that begin until now.
func (r *rate) advance(now time.Time) {
	slot := now.UnixNano() / int64(rateSlot)
	for n := max(r.slot+1, slot-rateSlots+1); n <= slot; n++ {
		r.bytes[n%rateSlots] = 0
	}
	r.slot = max(r.slot, slot)
}

// rateAfter is how long bytes have to come until there is a rate: the first chunks say
// little of it, and a time left that is made of them is nonsense.
const rateAfter = 3 * time.Second

// perSecond is the mean over the window, or since the start where that is later; 0 in the
// first seconds.
func (r *rate) perSecond(now time.Time) int64 {
	r.advance(now)
	var sum int64
	for _, b := range r.bytes {
		sum += b
	}
	begin := time.Unix(0, (r.slot-rateSlots+1)*int64(rateSlot))
	if r.start.After(begin) {
		begin = r.start
	}
	if now.Sub(r.start) < rateAfter {
		return 0
	}
	return int64(float64(sum) / now.Sub(begin).Seconds())
}
