package harness

import (
	"testing"
	"time"
)

// TestStartOfWhatEndsAtOnce: a program may be gone before its pid is looked for, as a
// daemon is that finds its port taken.
func TestStartOfWhatEndsAtOnce(t *testing.T) {
	t.Parallel()
	h := NewNetwork(t, "").AddHost(Newest)
	for range 20 {
		if code := h.Start(nil, "true").Wait(t, 10*time.Second); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
}
