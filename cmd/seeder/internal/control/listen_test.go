package control

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBusySocketIsNotReplaced: a daemon that hangs, so that its socket takes no more
// connections, is there anyway.
func TestBusySocketIsNotReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "api.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
		if full = err != nil; !full {
			defer conn.Close()
		}
	}
	if l, err := listenPrivate(path); err == nil || !strings.Contains(err.Error(), "cannot tell whether") {
		t.Errorf("%v %v, want an error", l, err)
	}
}
