package listen

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestPortInUse: the error names the key, the address and what to do.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = TCP("x.bind", taken.Addr().String(), 1)
	if err == nil {
		t.Fatal("it listens at an address that is taken")
	}
	for _, want := range []string{"x.bind " + taken.Addr().String(), "in use", "set x.bind"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

// TestCloseCutsOff: a request that does not end by itself holds Close up for no longer than
// its time.
func TestCloseCutsOff(t *testing.T) {
	t.Parallel()
	l, err := TCP("x.bind", "127.0.0.1:0", 8)
	if err != nil {
		t.Fatal(err)
	}
	began, end := make(chan struct{}), make(chan struct{})
	h := Serve("x.bind", l, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(end)
	})})
	answered := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		answered <- err
	}()
	<-began
	if err := h.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	<-end
	if err := <-answered; err == nil {
		t.Error("a request that never ends was answered")
	}
}
