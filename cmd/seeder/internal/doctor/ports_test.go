package doctor

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// TestPortOwner: the process that has a port is named, of either family, and nobody for
// a port that is free or that a connection has.
func TestPortOwner(t *testing.T) {
	t.Parallel()
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	me := fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(name)), os.Getpid())
	e := &exam{root: "/"}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil && strings.HasPrefix(address, "[") {
			t.Logf("no IPv6 on this machine: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if got := e.portOwner("tcp", l.Addr().String()); got != me {
			t.Errorf("%s is %s's, want %s", l.Addr(), got, me)
		}
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := e.portOwner("udp", c.LocalAddr().String()); got != me {
			t.Errorf("%s/udp is %s's, want %s", c.LocalAddr(), got, me)
		}
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := e.portOwner("tcp", conn.LocalAddr().String()); got != unknownOwner {
			t.Errorf("%s, the port of a connection, is %s's", conn.LocalAddr(), got)
		}
	}
	for _, invalid := range []string{"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"} {
		if got := e.portOwner("tcp", invalid); got != unknownOwner {
			t.Errorf("%q is %s's", invalid, got)
		}
	}
	if got := (&exam{root: t.TempDir()}).portOwner("tcp", "127.0.0.1:1"); got != unknownOwner {
		t.Errorf("without /proc: %s", got)
	}
}
