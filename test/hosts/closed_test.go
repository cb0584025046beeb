package hosts

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"seeder/test/harness"
)

// TestNothingInTheClear: neither names nor bytes of an image cross the network
// in the clear, by gossip or by transfer.
func TestNothingInTheClear(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Random: 2 << 20, Seed: 1})
	data := img.Layers[1]
	sample := data[len(data)/2:][:24] // does not compress: it travels raw
	tap := n.Tap()
	n.Hosts[0].Ctr("images", "import", img.DockerArchive(t, n.Dir))
	n.Hosts[0].Run("announce", harness.ShortName)
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
func plainSend(h *harness.Host, address string, b []byte) error {
	conn, err := harness.Dial(h, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(b)
	return err
}

// TestTransferPortIsClosed: the transfer port answers nobody who has no
// certificate of the cluster, nor without TLS.
func TestTransferPortIsClosed(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	strangers := map[string]*http.Transport{
		"without TLS": {DialContext: func(context.Context, string, string) (net.Conn, error) { return harness.Dial(b, a.Address+":7951") }},
		"without a certificate": {DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := harness.Dial(b, a.Address+":7951")
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
	n := harness.NewNetwork(t, "")
	a, b := n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	a.StartSeeder("SEEDER_CONTAINERD_ADDRESS=embedded")
	b.Write("/etc/seeder/secret", "quite another secret than that one\n", 0o600)
	b.StartSeederRaw("SEEDER_CONTAINERD_ADDRESS=embedded")
	harness.Eventually(t, 20*time.Second, "the log says that the secrets differ", func() error {
		if !strings.Contains(b.Seeder.Log.String(), "secrets differ") {
			return fmt.Errorf("log: %s", b.Seeder.Log.Tail(10))
		}
		return nil
	})
	a.AwaitMembers(1)
	b.AwaitMembers(1)
}
