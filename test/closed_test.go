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

// dial connects from the host to a TCP address.
func (h *host) dial(address string) (conn net.Conn, err error) {
	err = h.inNet(func() error {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp4", address)
		return err
	})
	return conn, err
}

// listen listens on the host.
func (h *host) listen(address string) net.Listener {
	h.t.Helper()
	var l net.Listener
	err := h.inNet(func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

// send sends bytes to another host and returns how long it took.
func (h *host) send(to *host, size int) time.Duration {
	h.t.Helper()
	l := to.listen(to.address + ":9")
	defer l.Close()
	conn, err := h.dial(l.Addr().String())
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	there, err := l.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	defer there.Close()
	start := time.Now()
	go conn.Write(make([]byte, size)) // ends with the connection
	if _, err := io.CopyN(io.Discard, there, int64(size)); err != nil {
		h.t.Fatal(err)
	}
	return time.Since(start)
}

// TestNothingInTheClear: neither names nor bytes of an image cross the network
// in the clear, by gossip or by transfer.
func TestNothingInTheClear(t *testing.T) {
	n := cluster(t, newest, 2, "")
	img := newImage(t, imageSpec{ref: short, says: "hello", random: 2 << 20, seed: 1})
	data := img.layers[1]
	sample := data[len(data)/2:][:24] // does not compress: it travels raw
	tap := n.tap()
	n.hosts[0].ctr("images", "import", img.dockerArchive(t, n.dir))
	n.hosts[0].run("announce", short)
	n.hosts[1].ready("hello")
	if err := n.hosts[1].plainSend(n.hosts[0].address+":7951", sample); err != nil {
		t.Fatal(err)
	}
	seen := tap()
	t.Logf("%.1f MB crossed the switch", float64(len(seen))/1e6)
	if len(seen) < 2<<20 {
		t.Errorf("only %d bytes were seen of an image of %d", len(seen), img.bytes())
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
func (h *host) plainSend(address string, b []byte) error {
	conn, err := h.dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(b)
	return err
}

// tap records what crosses the switch until the returned function is called.
func (n *network) tap() (stop func() []byte) {
	n.t.Helper()
	var seen bytes.Buffer
	end := n.frames(func(frame []byte) { seen.Write(frame) })
	return func() []byte {
		end()
		return seen.Bytes()
	}
}

// frames calls fn, from one goroutine, with each frame that enters the switch until
// the returned function is called.
func (n *network) frames(fn func(frame []byte)) (stop func()) {
	n.t.Helper()
	fd := -1
	err := n.switched.inNet(func() (err error) {
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
		n.t.Fatalf("record what crosses the switch: %v", err)
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
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	strangers := map[string]*http.Transport{
		"without TLS": {DialContext: func(context.Context, string, string) (net.Conn, error) { return b.dial(a.address + ":7951") }},
		"without a certificate": {DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := b.dial(a.address + ":7951")
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
	a.awaitMembers(2)
}

// TestWrongSecret: a host with another secret does not get in, and its log says
// that the secrets differ.
func TestWrongSecret(t *testing.T) {
	n := newNetwork(t, "")
	a, b := n.addHost(newest), n.addHost(newest)
	a.startSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	b.write("/etc/seeder/secret", "quite another secret than that one\n", 0o600)
	b.startSeederRaw("SEEDER_CONTAINERD_ADDRESS=embedded")
	eventually(t, 20*time.Second, "the log says that the secrets differ", func() error {
		if !strings.Contains(b.seeder.log.String(), "secrets differ") {
			return fmt.Errorf("log: %s", b.seeder.log.tail(10))
		}
		return nil
	})
	a.awaitMembers(1)
	b.awaitMembers(1)
}
