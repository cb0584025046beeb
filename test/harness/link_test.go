package harness

import (
	"testing"
	"time"
)

// TestSlowLink: the harness's slow link delays what it is said to delay, in both
// directions, and passes large segments and checksums on.
func TestSlowLink(t *testing.T) {
	n := NewNetwork(t, "100mbit")
	a, b := n.AddHost(Newest), n.AddHost(Newest)
	connect := func() time.Duration {
		l := Listen(b, b.Address+":9")
		defer l.Close()
		start := time.Now()
		conn, err := Dial(a, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		return time.Since(start)
	}
	before := connect()
	end := SlowLink(b, 100*time.Millisecond)
	// One round trip. On a busy machine the link may drop a packet, which TCP sends again
	// a second later, so it is the fastest of three.
	slow := min(connect(), connect(), connect())
	took := send(a, b, 2<<20)
	end()
	after := connect()
	t.Logf("a TCP connection takes %v, %v over the slow link, %v after it; 2 MiB over it %v", before, slow, after, took)
	if slow < 200*time.Millisecond || slow > 400*time.Millisecond || after > 100*time.Millisecond {
		t.Error("want 200 ms more on the slow link only")
	}
}

// TestLinksAreShaped: the harness's links have the rate that they are said to
// have, in both directions.
func TestLinksAreShaped(t *testing.T) {
	n := NewNetwork(t, "40mbit")
	a, b := n.AddHost(Newest), n.AddHost(Newest)
	const size = 4 << 20
	for _, way := range [][2]*Host{{a, b}, {b, a}} {
		rate := size * 8 / send(way[0], way[1], size).Seconds() / 1e6
		t.Logf("%s to %s: %.1f Mbit/s", way[0].Name, way[1].Name, rate)
		if rate > 44 || rate < 30 {
			t.Errorf("%.1f Mbit/s, want 40", rate)
		}
	}
}
