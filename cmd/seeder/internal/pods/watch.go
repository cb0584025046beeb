package pods

import (
	"context"
	"sync"
	"time"
)

// Watch is the pods that wait, for a daemon. It is safe for concurrent use.
type Watch struct {
	root string

	mu   sync.Mutex
	at   time.Time
	last Found
}

// Found is what the API server said last.
type Found struct {
	List []Waiting // by namespace and name, as the server has them
	// Why says why nobody was asked, or what came of it; empty where List is right.
	Why string
	// Asked: there is a kubeconfig.
	Asked bool
}

// askAgain is for how long what was found counts: who looks at a page for long costs the
// API server a question in that time.
const askAgain = 15 * time.Second

// NewWatch returns a watch with the kubeconfigs below root.
func NewWatch(root string) *Watch { return &Watch{root: root} }

// Waiting asks, unless it has just done so; that takes askTimeout at most.
func (w *Watch) Waiting(ctx context.Context) Found {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.at.IsZero() && now.Sub(w.at) < askAgain {
		return w.last
	}
	w.at, w.last = now, Found{}
	path, why := Find(w.root, nil)
	if path == "" {
		w.last.Why = why
		return w.last
	}
	w.last.Asked = true
	var err error
	if w.last.List, err = Ask(ctx, path); err != nil {
		w.last.Why = err.Error()
	}
	return w.last
}
