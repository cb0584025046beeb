package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// loopPatience is how long after it last came by a loop of the node counts as stuck.
// Each waits for at most its tick and one bounded question to containerd, together
// less than a third of this.
const loopPatience = time.Minute

// loop is what goes on for as long as a node is open.
type loop struct {
	name string
	run  func(context.Context)
}

// supervisor owns the goroutines of a node: it starts them, knows when each loop last came
// by, ends them and waits for all.
type supervisor struct {
	group  *errgroup.Group
	cancel context.CancelCauseFunc
	log    *slog.Logger

	mu sync.Mutex
	// last is when the loops that must go on whatever others do last came by. Those that
	// may rightly wait for something, as pull does for a hint, are not among them.
	last map[string]time.Time
}

// errClosing is the cause of the context's end when Close is called.
var errClosing = errors.New("node is closing")

// supervise returns a supervisor whose goroutines end with ctx, which ends when one fails.
func supervise(ctx context.Context, log *slog.Logger) (context.Context, *supervisor) {
	s := &supervisor{log: log, last: map[string]time.Time{}}
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.group, ctx = errgroup.WithContext(ctx)
	return ctx, s
}

// start runs loop until ctx ends.
func (s *supervisor) start(ctx context.Context, name string, loop func(context.Context)) {
	s.group.Go(func() error {
		loop(ctx)
		s.log.Debug("loop ended", "loop", name)
		return nil
	})
}

// beat says that a loop has made a turn. The time begins with the first one.
func (s *supervisor) beat(loop string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[loop] = time.Now()
}

// stuck is an error that names a loop that has not made a turn for a minute, nil where all do.
func (s *supervisor) stuck() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, loop := range slices.Sorted(maps.Keys(s.last)) {
		if d := time.Since(s.last[loop]); d > loopPatience {
			return fmt.Errorf("the node's %s loop has been stuck for %s", loop, d.Round(time.Second))
		}
	}
	return nil
}
