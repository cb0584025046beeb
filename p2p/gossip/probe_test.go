package gossip

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

func TestProbeArrives(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	b := start(t, "b", 1, nil, a.addr)
	eventually(t, "they know each other", func() bool { return len(a.Alive()) == 2 && len(b.Alive()) == 2 })
	nonce := NewNonce()
	if err := a.SendProbe("b", nonce); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if small, large := b.AwaitArrival(ctx, nonce); !small || !large {
		t.Errorf("arrived: small %v, large %v", small, large)
	}
	if small, large := b.Arrived(NewNonce()); small || large {
		t.Error("another one has arrived, too")
	}
	if err := a.Ping("b"); err != nil {
		t.Error(err)
	}
	if m, _ := a.member("b"); m.GossipAddress() != b.site.transport.Load().LocalAddr().String() {
		t.Errorf("address %s", m.GossipAddress())
	}
	for _, err := range []error{a.SendProbe("c", nonce), a.Ping("c")} {
		if err == nil || !strings.Contains(err.Error(), `unknown member "c"`) {
			t.Errorf("a member that is none: %v", err)
		}
	}
	b.Close()
	if err := a.Ping("b"); err == nil {
		t.Error("somebody answered who is gone")
	}
}

// TestArrivalsAreBounded: anyone who sends many probes makes this node forget, not grow.
func TestArrivalsAreBounded(t *testing.T) {
	t.Parallel()
	var a arrivals
	for i := range 3 * maxArrivals {
		msg := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 17)[:1+len(Nonce{})]
		a.record(msg)
		a.record(msg)
	}
	a.record([]byte{probeKind})
	a.record(make([]byte, largeProbeBytes+1))
	if len(a.order) != maxArrivals || len(a.byNonce) != maxArrivals {
		t.Errorf("%d and %d are remembered, at most %d are meant", len(a.order), len(a.byNonce), maxArrivals)
	}
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	a := start(t, "a", 1, nil)
	b := start(t, "b", 2, nil, a.addr)
	before := time.Now()
	eventually(t, "a stranger has knocked", func() bool { return len(a.Strangers(before.Add(-time.Minute))) == 1 })
	s := a.Strangers(before.Add(-time.Minute))[0]
	if s.Host != "127.0.0.1" || s.At.Before(before.Add(-time.Minute)) {
		t.Errorf("%+v", s)
	}
	if got := b.Strangers(time.Time{}); len(got) != 0 {
		t.Errorf("who knocks itself has heard %+v", got)
	}
	if got := a.Strangers(time.Now().Add(time.Hour)); len(got) != 0 {
		t.Errorf("one that was long ago: %+v", got)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add(append([]byte{probeKind}, make([]byte, 16)...))
	f.Add(append([]byte{probeKind}, make([]byte, largeProbeBytes-1)...))
	f.Add(make([]byte, largeProbeBytes+1))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var a arrivals
		a.record(msg)
		if fits := len(msg) >= 17 && len(msg) <= largeProbeBytes; (len(a.order) == 1) != fits {
			t.Fatalf("%d bytes: %d are noted", len(msg), len(a.order))
		}
	})
}
