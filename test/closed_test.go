package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
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

// TestNothingInTheClear: neither names nor bytes of an image cross the network
// in the clear, by gossip or by transfer.
func TestNothingInTheClear(t *testing.T) {
	n := NewCluster(t, Newest, 2, "")
	img := NewImage(t, ImageSpec{Ref: ShortName, Says: "hello", Random: 2 << 20, Seed: 1})
	data := img.Layers[1]
	sample := data[len(data)/2:][:24] // does not compress: it travels raw
	tap := n.Tap()
	n.Hosts[0].Ctr("images", "import", img.DockerArchive(t, n.Dir))
	n.Hosts[0].Run("announce", ShortName)
	n.Hosts[1].Ready("hello")
	if err := plainSend(n.Hosts[1], n.Hosts[0].Address+":7951", sample); err != nil {
		t.Fatal(err)
	}
	seen := tap()
	t.Logf("%.1f MB crossed the switch", float64(len(seen))/1e6)
	if len(seen) < 2<<20 {
		t.Errorf("only %d bytes were seen of an image of %d", len(seen), img.Bytes())
	}
	// The one sample is the one that was sent in the clear just now.
	if found := bytes.Count(seen, sample); found != 1 {
		t.Errorf("a piece of a layer was seen %d times, want only the one that the test sent", found)
	}
	for _, name := range []string{"k3s-dashboard", "seeder_", "sha256:"} {
		if bytes.Contains(seen, []byte(name)) {
			t.Errorf("%q crossed the network in the clear", name)
		}
	}
}

// plainSend writes bytes to a port without TLS.
func plainSend(h *Host, address string, b []byte) error {
	conn, err := Dial(h, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(b)
	return err
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

// TestTransferPortIsClosed: the transfer port answers nobody who has no
// certificate of the cluster, nor without TLS.
func TestTransferPortIsClosed(t *testing.T) {
	n := NewCluster(t, Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	strangers := map[string]*http.Transport{
		"without TLS": {DialContext: func(context.Context, string, string) (net.Conn, error) { return Dial(b, a.Address+":7951") }},
		"without a certificate": {DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := Dial(b, a.Address+":7951")
			if err != nil {
				return nil, err
			}
			return tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}), nil
		}},
	}
	for name, transport := range strangers {
		scheme := map[bool]string{true: "https", false: "http"}[transport.DialTLSContext != nil]
		client := http.Client{Transport: transport, Timeout: 5 * time.Second}
		resp, err := client.Get(scheme + "://node/v1/state")
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest || strings.Contains(string(body), "{") {
				t.Errorf("%s: %s %q", name, resp.Status, body)
			}
			continue
		}
		t.Logf("%s: %v", name, err)
	}
	a.AwaitMembers(2)
}

// TestWrongSecret: a host with another secret does not get in, and its log says
// that the secrets differ.
func TestWrongSecret(t *testing.T) {
	n := NewNetwork(t, "")
	a, b := n.AddHost(Newest), n.AddHost(Newest)
	a.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	b.Write("/etc/seeder/secret", "quite another secret than that one\n", 0o600)
	b.StartSeederRaw("SEEDER_CONTAINERD_ADDRESS=embedded")
	Eventually(t, 20*time.Second, "the log says that the secrets differ", func() error {
		if !strings.Contains(b.Seeder.Log.String(), "secrets differ") {
			return fmt.Errorf("log: %s", b.Seeder.Log.Tail(10))
		}
		return nil
	})
	a.AwaitMembers(1)
	b.AwaitMembers(1)
}
