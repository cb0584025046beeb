package wall

import (
	"bytes"
	"log/slog"
	"sync"
)

// LogWriter takes memberlist's log lines ("[WARN] memberlist: …"). What it calls an
// error is mostly the network being the network, so all of it is debug.
type LogWriter struct {
	log *slog.Logger

	mu     sync.Mutex
	closed bool
}

// NewLogWriter returns one that is open.
func NewLogWriter(log *slog.Logger) *LogWriter { return &LogWriter{log: log} }

// Close drops what comes from now on: memberlist's timers of suspicion outlive
// its Shutdown, and the owner of the log need not.
func (w *LogWriter) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Write implements io.Writer, one line a call.
func (w *LogWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.log.Debug(string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}
