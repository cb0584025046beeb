package control

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/report"
)

// slow is a cluster that takes a while to answer, and whose last node is ready at a time
// that it tells.
type slow struct {
	look  time.Duration
	ready time.Time
}

// Images implements matrix.
func (s slow) Images(context.Context, ...string) (report.Images, error) {
	time.Sleep(s.look)
	row := report.ImageState{Reference: "r", Version: 1, Total: 2, Ready: 1}
	if !time.Now().Before(s.ready) {
		row.Ready = 2
	}
	return report.Images{Images: []report.ImageState{row}}, nil
}

// Watch implements matrix.
func (s slow) Watch(ctx context.Context, fn func(), _ ...string) {
	time.Sleep(time.Until(s.ready))
	fn()
	<-ctx.Done()
}

// TestEndsWhenTheLastIsReady: however long the answers take, the end is known soon after
// the last node is ready; it was up to ten times as long after it.
func TestEndsWhenTheLastIsReady(t *testing.T) {
	t.Parallel()
	for _, look := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 150 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			for at := time.Second; at < 4*time.Second; at += 70 * time.Millisecond {
				s := slow{look: look, ready: time.Now().Add(at)}
				w := watcher{cluster: s, versions: map[string]uint64{"r": 1}, refs: []string{"r"}, emit: func(Event) error { return nil }}
				if err := w.wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if late := time.Since(s.ready); late > 3*look {
					t.Errorf("a look takes %s: done %s after the last node", look, late)
				}
			}
		})
	}
}
