package reserve

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

// scarce is a listener that has no descriptor for its first connections.
type scarce struct {
	*net.UnixListener
	failures int
	free     func() bool // whether a descriptor was given back
}

func (s *scarce) Accept() (net.Conn, error) {
	if s.failures > 0 && !s.free() {
		s.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return s.UnixListener.Accept()
}

// TestRefuses: who connects while there is no descriptor is told so; the next one is
// served.
func TestRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	under, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &scarce{UnixListener: under.(*net.UnixListener), failures: 1}
	l := Listen(s, func(c net.Conn) { io.WriteString(c, "no descriptor") })
	s.free = func() bool { return l.spare == nil }
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if got, err := io.ReadAll(first); err != nil || string(got) != "no descriptor" {
		t.Errorf("told %q, %v", got, err)
	}
	second, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	(<-accepted).Close()
	if l.spare == nil {
		t.Error("nothing is kept in reserve afterwards")
	}
}

// TestClosed: Accept ends with Close, and nothing is left open.
func TestClosed(t *testing.T) {
	under, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(under, nil)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if l.spare != nil {
		t.Error("the spare descriptor is open")
	}
}
