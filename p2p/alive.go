package p2p

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// loopPatience is how long after it last came by a loop of the node counts as stuck.
// Each waits for at most its tick and one bounded question to containerd, together
// less than a third of this.
const loopPatience = time.Minute

// beats is when the loops that must go on whatever others do last came by. Those that
// may rightly wait for something, as pull does for a hint, are not among them.
type beats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (b *beats) beat(loop string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = map[string]time.Time{}
	}
	b.last[loop] = time.Now()
}

// Stuck is an error that names a loop of the node that has not come by for a minute,
// nil where all do. A containerd that is away or hangs, a member that is silent and a
// full disk make none stuck: what asks them gives up in time.
func (n *Node) Stuck() error {
	n.beats.mu.Lock()
	defer n.beats.mu.Unlock()
	for _, loop := range slices.Sorted(maps.Keys(n.beats.last)) {
		if d := time.Since(n.beats.last[loop]); d > loopPatience {
			return fmt.Errorf("the node's %s loop has been stuck for %s", loop, d.Round(time.Second))
		}
	}
	return nil
}
