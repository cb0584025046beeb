package control

import (
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// impatient is a client that soon asks whether the daemon is there.
func impatient(socket string) *Client {
	c := Dial(socket)
	c.patience = 100 * time.Millisecond
	return c
}

// TestSilentDaemon: no command waits forever on a daemon that accepts nothing, nor for
// the answer of one that stops in the middle.
func TestSilentDaemon(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts: the kernel has the connections
	c := impatient(socket)
	body, never := io.Pipe() // an archive that the daemon does not take
	defer never.Close()
	for name, ask := range map[string]func() error{
		"get":    func() error { return c.Get(t.Context(), "/v1/status", nil, nil) },
		"post":   func() error { return c.Post(t.Context(), "/v1/withdraw", nil, nil) },
		"stream": func() error { return c.Stream(t.Context(), http.MethodGet, "/v1/wait", nil, nil, nil) },
		"archive": func() error {
			return c.Stream(t.Context(), http.MethodPost, "/v1/announce", nil, body, nil)
		},
	} {
		err := ask()
		var coded *cli.Error
		if !errors.As(err, &coded) || cli.ExitCode(err) != cli.ExitNoDaemon {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []string{"does not answer", "it last did at", "its process is", "journalctl -u seeder"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
}

// TestSlowAnswer: a daemon that works for long is waited for, as long as it says that it
// is there.
func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	pings := make(chan struct{}, 100)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ping", func(http.ResponseWriter, *http.Request) { pings <- struct{}{} })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		for range 3 { // it takes three times the patience
			select {
			case <-pings:
			case <-r.Context().Done():
				return
			}
		}
		io.WriteString(w, "{}")
	})
	s := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	defer func() {
		s.Close()
		<-served
	}()
	var out struct{}
	c := Dial(socket)
	c.patience = 500 * time.Millisecond // of a process that shares its cores
	if err := c.Get(t.Context(), "/v1/status", nil, &out); err != nil {
		t.Errorf("a slow answer: %v", err)
	}
	c = Dial(socket) // which asks for no sign of life
	c.answer = 50 * time.Millisecond
	if err := c.Get(t.Context(), "/v1/status", nil, &out); cli.ExitCode(err) != cli.ExitNoDaemon || !strings.Contains(err.Error(), "has not answered /v1/status within") {
		t.Errorf("an answer that never comes: %v", err)
	}
}
