package gossip

import (
	"bytes"
	"log/slog"
	"sync"
)

// logWriter takes memberlist's log lines ("[WARN] memberlist: …"). What it calls an
// error is mostly the network being the network, so all of it is debug.
type logWriter struct {
	log *slog.Logger

	mu     sync.Mutex
	closed bool
}

// close drops what comes from now on: memberlist's timers of suspicion outlive
// its Shutdown, and the owner of the log need not.
func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Write implements io.Writer, one line a call.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.log.Debug(string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}
