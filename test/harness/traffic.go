package harness

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects from the host to a TCP address.
func Dial(h *Host, address string) (conn net.Conn, err error) {
	err = h.InNet(func() error {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp4", address)
		return err
	})
	return conn, err
}

// Listen listens on the host.
func Listen(h *Host, address string) net.Listener {
	h.T.Helper()
	var l net.Listener
	err := h.InNet(func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		h.T.Fatal(err)
	}
	h.T.Cleanup(func() { l.Close() })
	return l
}

// send sends bytes to another host and returns how long it took.
func send(h *Host, to *Host, size int) time.Duration {
	h.T.Helper()
	l := Listen(to, to.Address+":9")
	defer l.Close()
	conn, err := Dial(h, l.Addr().String())
	if err != nil {
		h.T.Fatal(err)
	}
	defer conn.Close()
	there, err := l.Accept()
	if err != nil {
		h.T.Fatal(err)
	}
	defer there.Close()
	start := time.Now()
	go conn.Write(make([]byte, size)) // ends with the connection
	if _, err := io.CopyN(io.Discard, there, int64(size)); err != nil {
		h.T.Fatal(err)
	}
	return time.Since(start)
}

// Tap records what crosses the switch until the returned function is called.
func (n *Network) Tap() (stop func() []byte) {
	n.T.Helper()
	var seen bytes.Buffer
	end := n.Frames(func(frame []byte) { seen.Write(frame) })
	return func() []byte {
		end()
		return seen.Bytes()
	}
}

// Frames calls fn, from one goroutine, with each frame that enters the switch until
// the returned function is called.
func (n *Network) Frames(fn func(frame []byte)) (stop func()) {
	n.T.Helper()
	fd := -1
	err := n.Switched.InNet(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, allProtocols)
		return err
	})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	}
	if err != nil {
		n.T.Fatalf("record what crosses the switch: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer unix.Close(fd)
		frame := make([]byte, 256<<10)
		for quiet := false; ctx.Err() == nil || !quiet; {
			k, from, err := unix.Recvfrom(fd, frame, 0)
			quiet = err != nil
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && err == nil && ll.Pkttype != unix.PACKET_OUTGOING {
				fn(frame[:k])
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}
