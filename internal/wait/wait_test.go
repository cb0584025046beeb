package wait

import (
	"math"
	"testing"
	"time"
)

func TestDoubled(t *testing.T) {
	t.Parallel()
	for failures, want := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		if got := Doubled(100, 1000, failures); got != want {
			t.Errorf("after %d failures %d, want %d", failures, got, want)
		}
	}
	if got := Doubled(time.Second, time.Minute, math.MaxInt); got != time.Minute {
		t.Errorf("after very many %s", got)
	}
	if got := Doubled(time.Minute, time.Second, 0); got != time.Second {
		t.Errorf("the first is longer than the longest: %s", got)
	}
	if got := Doubled(time.Second, time.Minute, -1); got != time.Second {
		t.Errorf("after none %s", got)
	}
}

func TestSignal(t *testing.T) {
	t.Parallel()
	s := NewSignal()
	s.Set()
	s.Set() // is one with the other
	<-s
	select {
	case <-s:
		t.Error("two signals came of two that nobody looked at")
	default:
	}
}
