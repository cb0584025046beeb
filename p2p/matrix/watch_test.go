package matrix

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

// TestHold: an answer is held back until the image is ready in the version that is asked
// for, and no longer than maxHold; of more than maxHeld the rest comes at once.
func TestHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := NewColumn(func(digest.Digest) int64 { return 0 })
		m := New(Config{Column: c})
		took := func(ctx context.Context, version uint64) time.Duration {
			began := time.Now()
			m.hold(ctx, []string{"r"}, []uint64{version})
			return time.Since(began)
		}
		old, now := catalog.Announcement{Reference: "r", Version: 1}, catalog.Announcement{Reference: "r", Version: 2}
		c.Begin(old)
		c.Settle(old, report.Ready, "", 0)
		if d := took(t.Context(), 1); d != 0 {
			t.Errorf("of what is ready: held for %s", d)
		}
		if d := took(t.Context(), 2); d != maxHold {
			t.Errorf("of a later version: held for %s, want %s", d, maxHold)
		}
		go func() {
			time.Sleep(time.Second)
			c.Begin(now)
			c.Settle(now, report.Failed, "for now", 0)
			time.Sleep(time.Second)
			c.Settle(now, report.Ready, "", 0)
		}()
		if d := took(t.Context(), 2); d != 2*time.Second {
			t.Errorf("held for %s, want until it is ready", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if d := took(ctx, 3); d != time.Second {
			t.Errorf("of who has gone: held for %s", d)
		}
		for range maxHeld {
			go took(t.Context(), 3)
		}
		synctest.Wait()
		if d := took(t.Context(), 3); d != 0 {
			t.Errorf("one too many was held for %s", d)
		}
		time.Sleep(maxHold)
		synctest.Wait()
		if n := m.held.Load(); n != 0 {
			t.Errorf("%d are held for good", n)
		}
	})
}
