package rollout

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"seeder/p2p/report"
)

// nodes are ready with what they are told.
type nodes struct {
	mu    sync.Mutex
	rows  map[string]report.ImageState
	asked int
}

func (n *nodes) set(row report.ImageState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rows[row.Reference] = row
}

func (n *nodes) Images(_ context.Context, refs ...string) (out report.Images, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	for _, ref := range refs {
		out.Images = append(out.Images, n.rows[ref])
	}
	return out, nil
}

// TestSaysWhatIsReadyEverywhere: each announcement of this host that comes to its end has
// one line, one that is replaced or withdrawn has none, and nobody is asked for nothing.
func TestSaysWhatIsReadyEverywhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := &nodes{rows: map[string]report.ImageState{}}
		w := New(slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx, n); close(done) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n.asked != 0 {
			t.Errorf("asked %d times while nothing is announced", n.asked)
		}
		row := report.ImageState{Reference: "a:v1", Version: 3, State: "announced", Ready: 1, Total: 3, Away: 1}
		for _, ref := range []string{"a:v1", "b:v1", "c:v1"} {
			row.Reference = ref
			n.set(row)
			w.Announced(ref, 3)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if log.Len() > 0 {
			t.Errorf("it says before anything is ready: %s", log.String())
		}
		ready := row
		ready.Reference, ready.Ready = "a:v1", 2
		n.set(ready)
		replaced := row
		replaced.Reference, replaced.Version, replaced.Ready = "b:v1", 4, 3
		n.set(replaced)
		withdrawn := row
		withdrawn.Reference, withdrawn.State = "c:v1", "withdrawn"
		n.set(withdrawn)
		time.Sleep(maxPause)
		synctest.Wait()
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg="image ready on all alive nodes" component=rollout ref=a:v1 version=3 ready=2 away=1 took=2`) {
			t.Errorf("it says %s", got)
		}
		asked := n.asked
		if asked > 20 {
			t.Errorf("asked %d times in half a minute", asked)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n.asked != asked {
			t.Errorf("asked %d times more when all is over", n.asked-asked)
		}
		n.set(row)
		w.Announced(row.Reference, 3)
		time.Sleep(giveUp + time.Minute)
		synctest.Wait()
		asked = n.asked
		time.Sleep(time.Hour)
		synctest.Wait()
		if n.asked != asked {
			t.Error("an announcement that does not end is followed forever")
		}
		cancel()
		<-done
	})
}
