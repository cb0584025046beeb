//go:build linux

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"seeder/internal/reserve"
)

// listener accepts for the server. Each accepted connection sets the time of the
// socket's file; where there is no descriptor for one, the command is told so.
func (c *Server) listener(l net.Listener) net.Listener {
	return &stamped{Listener: reserve.Listen(l, c.refuseScarce), path: c.path}
}

// stamped sets the time of a socket's file when it accepts.
type stamped struct {
	net.Listener
	path string
}

// Accept implements net.Listener.
func (s *stamped) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err == nil {
		now := time.Now()
		_ = os.Chtimes(s.path, now, now) // only what a command says of a daemon that hangs
	}
	return conn, err
}

// refuseScarce answers a command for which the daemon has no descriptor.
func (c *Server) refuseScarce(conn net.Conn) {
	c.log.Warn("refused a command: out of file descriptors", "limit", fileLimit())
	buf := make([]byte, 4096)
	if _, err := conn.Read(buf); err != nil { // its request; what else it sends is not read
		return
	}
	answer, err := json.Marshal(map[string]string{"error": fmt.Sprintf(
		"the daemon has no free file descriptor (limit %d): `ls -l /proc/%d/fd` shows what is open; raise LimitNOFILE of seeder.service, or `systemctl restart seeder`", fileLimit(), os.Getpid())})
	if err != nil {
		return
	}
	fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
}

// fileLimit is how many descriptors this process may have; 0 where that cannot be told.
func fileLimit() uint64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return limit.Cur
}

// beat connects to the socket as commands do, until ctx ends.
func (c *Server) beat(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	dialer := net.Dialer{Timeout: time.Second}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if conn, err := dialer.DialContext(ctx, "unix", c.path); err == nil {
				conn.Close()
			}
		}
	}
}

// process is who listens on the socket, and its state as the kernel names it: R, S, D,
// T. 0 where that cannot be told.
func (c *Client) process() (pid int32, state string) {
	conn, err := net.DialTimeout("unix", c.Socket, time.Second)
	if err != nil {
		return 0, ""
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, ""
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cerr != nil {
		return 0, ""
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cred.Pid))
	if err != nil {
		return cred.Pid, "unknown"
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "State:"); ok {
			return cred.Pid, strings.TrimSpace(rest)
		}
	}
	return cred.Pid, "unknown"
}
