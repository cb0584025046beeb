package wait

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestOutlive: what has to be done after the end of a context has its time, and no
// more.
func TestOutlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out, done := Outlive(ctx, time.Second)
		defer done()
		time.Sleep(time.Hour)
		if out.Err() != nil {
			t.Fatal("it ended before the context did")
		}
		began := time.Now()
		cancel()
		<-out.Done()
		if took := time.Since(began); took != time.Second {
			t.Errorf("it ended %s after the context, want 1 s", took)
		}
	})
}
