package harness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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

// SlowLink puts a delay on a host's link in both directions, without a limit on
// what may be on its way. It takes the place of the cable between the switch and
// the host until the returned function is called.
func SlowLink(h *Host, delay time.Duration) (end func()) {
	h.T.Helper()
	sw := h.Net.Switched
	in, out := h.Port+"a", h.Port+"b"
	Run(h.T, sw.In(h.T.Context(), "sh", "-ec", strings.Join([]string{
		"ip link add " + in + " type veth peer name " + out,
		"ip link set " + h.Port + " nomaster promisc on",
		"ip link set " + in + " up promisc on",
		"ip link set " + out + " master br0 up",
	}, "\n")))
	ctx, cancel := context.WithCancel(context.Background())
	cable, err := sw.connect(ctx, h.Port, in, delay)
	if err != nil {
		h.T.Fatalf("delay the link of %s: %v", h.Name, err)
	}
	return func() {
		cancel()
		cable()
		Run(h.T, sw.In(h.T.Context(), "sh", "-ec", strings.Join([]string{
			"ip link del " + in,
			"ip link set " + h.Port + " promisc off master br0",
		}, "\n")))
	}
}
