package swarm

import (
	"slices"
	"testing"
	"time"

	"seeder/store/chunk"
)

const ms = time.Millisecond

func bitmapOf(n int, set ...int) chunk.Bitmap {
	b := chunk.NewBitmap(n)
	for _, i := range set {
		b.Set(i)
	}
	return b
}

// chunksOf is the content of b, ascending.
func chunksOf(b chunk.Bitmap) []int {
	out := []int{}
	b.Both(b, func(n int) bool { out = append(out, n); return true })
	return out
}

func TestMedian(t *testing.T) {
	long := []time.Duration{}
	for range 32 {
		long = append(long, 900*ms) // falls out of the last 32
	}
	for i := range 32 {
		long = append(long, time.Duration(i)*ms)
	}
	cases := []struct {
		name   string
		added  []time.Duration
		median time.Duration
		enough bool
	}{
		{"none", nil, 0, false},
		{"one", []time.Duration{7 * ms}, 7 * ms, false},
		{"unsorted", []time.Duration{9 * ms, 1 * ms, 5 * ms}, 5 * ms, false},
		{"even: the upper of the middle two", []time.Duration{4 * ms, 1 * ms, 3 * ms, 2 * ms}, 3 * ms, true},
		{"one outlier", []time.Duration{1 * ms, 1 * ms, time.Hour, 1 * ms, 1 * ms}, 1 * ms, true},
		{"the last 32 only", long, 16 * ms, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var d durations
			for _, x := range c.added {
				d.add(x)
			}
			if got := d.median(); got != c.median || d.enough() != c.enough {
				t.Errorf("median %v, enough %v, want %v, %v", got, d.enough(), c.median, c.enough)
			}
			if last := c.added[max(0, len(c.added)-32):]; len(last) > 0 && d.least != slices.Min(last) {
				t.Errorf("least %v of %v", d.least, last)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	for median, want := range map[time.Duration]time.Duration{
		0: time.Second, 8 * ms: time.Second, 250 * ms: time.Second,
		251 * ms: 1004 * ms, 5 * time.Second: 20 * time.Second,
	} {
		if got := deadline(median); got != want {
			t.Errorf("deadline at a median of %v: %v, want %v", median, got, want)
		}
	}
	for bytes, want := range map[int64]time.Duration{
		0: 30 * time.Second, 8 << 10: 31 * time.Second, chunk.MaxBytes: 542 * time.Second,
	} {
		if got := hardDeadline(bytes); got != want {
			t.Errorf("hard deadline of %d bytes: %v, want %v", bytes, got, want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for strikes, want := range map[int]time.Duration{
		-1: 100 * ms, 0: 100 * ms, 1: 100 * ms, 2: 200 * ms, 3: 400 * ms, 7: 6400 * ms,
		8: 10 * time.Second, 64: 10 * time.Second, 1 << 30: 10 * time.Second,
	} {
		if got := backoff(strikes); got != want {
			t.Errorf("after %d failures: %v, want %v", strikes, got, want)
		}
	}
}

func TestFinding(t *testing.T) {
	cases := []struct {
		asked, dry, neighbours int
		useful                 bool
		want                   time.Duration
	}{
		{0, 0, 0, false, 100 * ms},
		{0, 1, 0, false, 200 * ms},
		{9, 4, 3, false, 1600 * ms},
		{9, 5, 40, false, 3 * time.Second}, // neighbours without anything are none
		{1e9, 1e9, 0, false, 3 * time.Second},
		{0, 0, 1, true, 500 * ms}, // those who joined with us are not known yet
		{1, 9, 1, true, time.Second},
		{3, 0, 23, true, 4 * time.Second},
		{4, 0, 23, true, 5 * time.Second},
		{1e9, 0, 1, true, 5 * time.Second},
		{0, 0, 24, true, 20 * time.Second},
	}
	for _, c := range cases {
		if got := finding(c.asked, c.dry, c.neighbours, c.useful); got != c.want {
			t.Errorf("finding(%d, %d, %d, %v) = %v, want %v", c.asked, c.dry, c.neighbours, c.useful, got, c.want)
		}
	}
}

func TestInFlightFor(t *testing.T) {
	cases := []struct {
		trip, gap time.Duration
		want      int
	}{
		{0, 0, 5}, {time.Second, 0, 5}, {0, 8 * ms, 5},
		{1 * ms, 8 * ms, 5}, {2 * ms, 8 * ms, 6}, {10 * ms, 8 * ms, 10}, {50 * ms, 80 * ms, 7},
		{14 * ms, 8 * ms, 12}, {50 * ms, 8 * ms, 12}, {time.Hour, time.Nanosecond, 12},
	}
	for _, c := range cases {
		if got := inFlightFor(c.trip, c.gap); got != c.want {
			t.Errorf("trips of %v, a chunk every %v: %d requests, want %d", c.trip, c.gap, got, c.want)
		}
	}
}

func TestPerPeer(t *testing.T) {
	cases := []struct{ useful, requests, want int }{
		{0, 5, 3}, {1, 5, 3}, {2, 5, 3}, {3, 5, 2}, {4, 5, 2}, {5, 5, 1}, {6, 5, 1}, {1000, 5, 1},
		{0, 12, 10}, {1, 12, 10}, {2, 12, 6}, {5, 12, 3}, {12, 12, 1}, {32, 12, 1}, {2, 7, 4},
	}
	for _, c := range cases {
		if got := perPeer(c.useful, c.requests); got != c.want {
			t.Errorf("%d useful peers: %d of %d requests each, want %d", c.useful, got, c.requests, c.want)
		}
	}
}

func TestRarest(t *testing.T) {
	const n = 130
	copies := make([]uint16, n)
	for i := range copies {
		copies[i] = 5
	}
	copies[3], copies[70], copies[129] = 2, 2, 1
	cases := []struct {
		name       string
		free, have chunk.Bitmap
		want       int
	}{
		{"nothing free", chunk.NewBitmap(n), everything(n), -1},
		{"nothing held", everything(n), chunk.NewBitmap(n), -1},
		{"no overlap", bitmapOf(n, 1, 2), bitmapOf(n, 3, 4), -1},
		{"the rarest, wherever it is", everything(n), everything(n), 129},
		{"ties by lowest offset", bitmapOf(n, 3, 70), everything(n), 3},
		{"only what is free", bitmapOf(n, 5, 70, 100), everything(n), 70},
		{"only what is held", everything(n), bitmapOf(n, 9, 8), 8},
		{"a peer with less room", everything(n), bitmapOf(64, 63), 63},
	}
	for _, c := range cases {
		if got := rarest(c.free, c.have, copies); got != c.want {
			t.Errorf("%s: chunk %d, want %d", c.name, got, c.want)
		}
	}
	copies[50] = 0
	if got := rarest(everything(n), everything(n), copies); got != 50 {
		t.Errorf("held by no partial peer: chunk %d, want 50", got)
	}
}

func TestClassOf(t *testing.T) {
	set := bitmapOf(130, 0, 1, 5, 64, 66, 129)
	cases := []struct {
		rank, k int
		want    []int
	}{
		{0, 0, []int{0, 1, 5, 64, 66, 129}},
		{0, 1, []int{0, 1, 5, 64, 66, 129}},
		{7, 1, []int{0, 1, 5, 64, 66, 129}},
		{0, 2, []int{0, 64, 66}},
		{1, 2, []int{1, 5, 129}},
		{3, 2, []int{1, 5, 129}}, // more complete peers than classes share them
		{0, 4, []int{0, 64}},
		{3, 4, []int{}},
	}
	for _, c := range cases {
		if got := chunksOf(classOf(set, c.rank, c.k)); !slices.Equal(got, c.want) {
			t.Errorf("rank %d of %d: %v, want %v", c.rank, c.k, got, c.want)
		}
	}
	for k := 1; k <= maxClasses; k++ {
		union, sum := chunk.NewBitmap(130), 0
		for rank := range k {
			class := classOf(set, rank, k)
			class.Both(class, func(n int) bool { union.Set(n); sum++; return true })
		}
		if sum != set.Count() || !union.Contains(set) {
			t.Errorf("%d classes hold %d chunks of %d", k, sum, set.Count())
		}
	}
	classOf(set, 0, 1).Clear(0)
	if !set.Has(0) {
		t.Error("the class shares memory with its set")
	}
}

func TestEndgame(t *testing.T) {
	cases := []struct {
		free, missing int
		want          bool
	}{
		{0, 0, false}, {0, 1, true}, {0, 4, true}, {0, 5, false}, {1, 4, false}, {0, -1, false},
	}
	for _, c := range cases {
		if got := endgame(c.free, c.missing); got != c.want {
			t.Errorf("%d free, %d missing: %v, want %v", c.free, c.missing, got, c.want)
		}
	}
}

func TestLast(t *testing.T) {
	cases := []struct {
		set  chunk.Bitmap
		want int
	}{
		{nil, -1}, {chunk.NewBitmap(200), -1}, {bitmapOf(200, 0), 0}, {bitmapOf(200, 63), 63},
		{bitmapOf(200, 3, 64), 64}, {bitmapOf(200, 199), 199}, {everything(130), 129},
	}
	for _, c := range cases {
		if got := c.set.Last(); got != c.want {
			t.Errorf("last of %v is %d, want %d", chunksOf(c.set), got, c.want)
		}
	}
}
