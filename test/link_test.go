package test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vnetHeader begins each frame on a packet socket with PACKET_VNET_HDR: it says
// what of the checksum and of the cutting into segments is left to the card
// (linux/virtio_net.h), so that a frame can be passed on as it came.
const vnetHeader = 10

// packetSocket is bound to one interface of a network namespace.
func (s *Space) packetSocket(name string) (fd int, err error) {
	err = s.InNet(func() error {
		var index int
		if index, err = interfaceIndex(name); err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: index}))
	})
	if err != nil {
		return 0, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	return fd, nil
}

const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order

// interfaceIndex asks the namespace that the thread is in.
func interfaceIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}

// delayed is a frame on its way.
type delayed struct {
	due   time.Time
	frame []byte
}

// connect passes frames between two interfaces, each after a delay, until ctx
// ends. The returned function waits for the end.
func (s *Space) connect(ctx context.Context, a, b string, delay time.Duration) (wait func(), err error) {
	left, err := s.packetSocket(a)
	if err != nil {
		return nil, err
	}
	right, err := s.packetSocket(b)
	if err != nil {
		return nil, errors.Join(err, unix.Close(left))
	}
	var wg sync.WaitGroup
	for _, way := range [][2]int{{left, right}, {right, left}} {
		queue := make(chan delayed, 1<<16) // frames; one that finds no room is lost
		wg.Go(func() { receiveFrames(ctx, way[0], delay, queue) })
		wg.Go(func() { sendFrames(way[1], queue) })
	}
	return func() {
		wg.Wait()
		unix.Close(left)
		unix.Close(right)
	}, nil
}

func receiveFrames(ctx context.Context, fd int, delay time.Duration, queue chan<- delayed) {
	defer close(queue)
	buf := make([]byte, 128<<10)
	for ctx.Err() == nil {
		k, from, err := unix.Recvfrom(fd, buf, 0)
		if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING || k <= vnetHeader {
			continue // the timeout that lets us look at ctx, or what we sent ourselves
		}
		select {
		case queue <- delayed{time.Now().Add(delay), append([]byte(nil), buf[:k]...)}:
		default:
		}
	}
}

func sendFrames(fd int, queue <-chan delayed) {
	for d := range queue {
		time.Sleep(time.Until(d.due)) // the delay itself
		unix.Write(fd, d.frame)       // what the link does not take is lost, as on any link
	}
}

// TestSlowLink: the harness's slow link delays what it is said to delay, in both
// directions, and passes large segments and checksums on.
func TestSlowLink(t *testing.T) {
	n := NewNetwork(t, "100mbit")
	a, b := n.AddHost(Newest), n.AddHost(Newest)
	connect := func() time.Duration {
		l := Listen(b, b.Address+":9")
		defer l.Close()
		start := time.Now()
		conn, err := Dial(a, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		return time.Since(start)
	}
	before := connect()
	end := SlowLink(b, 100*time.Millisecond)
	slow := connect() // one round trip
	took := send(a, b, 2<<20)
	end()
	after := connect()
	t.Logf("a TCP connection takes %v, %v over the slow link, %v after it; 2 MiB over it %v", before, slow, after, took)
	if slow < 200*time.Millisecond || slow > 400*time.Millisecond || after > 100*time.Millisecond {
		t.Error("want 200 ms more on the slow link only")
	}
}
