package p2p_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"seeder/p2p/report"
)

// TestWatchHearsTheLastNode: who watches an image hears of each node when it is ready,
// also of one that is later than an answer is held back.
func TestWatchHearsTheLastNode(t *testing.T) {
	simulate(t, []int{3}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		ref, late := refFor("a", "all"), c.nodes[2]
		late.store.SetRoom("no room")
		c.announce(c.nodes[0], ref)
		ctx, cancel := context.WithCancel(context.Background())
		told := make(chan struct{}, 100)
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() { c.nodes[0].Watch(ctx, func() { told <- struct{}{} }, ref) })
		time.Sleep(12 * time.Second)
		if len(told) != 2 {
			c.t.Errorf("told %d times, want of the two that are ready", len(told))
		}
		late.store.SetRoom("")
		for c.cell(late, ref).State != report.Ready {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		if len(told) != 3 {
			c.t.Errorf("told %d times, want of the third at once", len(told))
		}
	})
}
