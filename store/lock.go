package store

import (
	"context"
	"sync"
)

// keyLock is a lock for each key. The zero value is ready.
type keyLock[K comparable] struct {
	mu   sync.Mutex
	held map[K]chan struct{}
}

// lock waits for the key's lock; unlock frees it.
func (l *keyLock[K]) lock(ctx context.Context, k K) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[K]chan struct{}{}
		}
		wait, taken := l.held[k]
		if !taken {
			free := make(chan struct{})
			l.held[k] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, k)
				l.mu.Unlock()
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try is lock for those who do not wait: ok is false where somebody has it.
func (l *keyLock[K]) try(k K) (unlock func(), ok bool) {
	l.mu.Lock()
	_, taken := l.held[k]
	l.mu.Unlock()
	if taken {
		return nil, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	unlock, err := l.lock(ctx, k) // somebody may have been faster
	return unlock, err == nil
}
