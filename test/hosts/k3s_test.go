package hosts

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// addK3s adds a host that k3s has made a server of, or an agent that has joined servers,
// with seeder as it is installed: without any configuration.
func addK3s(n *harness.Network, servers ...*harness.Host) *harness.Host {
	h := n.AddHost(harness.Newest)
	h.WriteK3s(servers...)
	h.StartContainerd()
	h.Seeder = h.Start(nil, harness.SeederBin(n.T), "daemon")
	return h
}

// TestNoConfiguration: on hosts that k3s has made servers and agents of, seeder needs no
// configuration at all: the secret comes from the cluster's token, the agents join the
// servers that they know, and follow their list of them while they run. A token that is
// rotated is noticed, and changes nothing by itself.
func TestNoConfiguration(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := harness.NewNetwork(t, "")
	tap := n.Tap()
	server := addK3s(n)
	agent := addK3s(n, server)
	other := addK3s(n, server)
	server.AwaitMembers(3)
	server.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	server.Run("announce", harness.ShortName)
	for _, h := range []*harness.Host{agent, other} {
		h.InState(h, report.Ready, "")
	}
	for _, h := range n.Hosts {
		if log := h.Seeder.Log.String(); strings.Contains(log, harness.K3sPassword) || strings.Contains(log, "level=WARN") {
			t.Errorf("%s: %s", h.Name, log)
		}
	}
	out := agent.Run("config", "show")
	for _, want := range []string{
		"the token in /etc/systemd/system/k3s-agent.service.env", harness.Socket, "auto: k3s agent, by /etc/systemd/system/k3s-agent.service",
		"overlayfs", "that of CRI", server.Address, "the servers in " + harness.K3sBalancer,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("config show has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, harness.K3sPassword) {
		t.Error("config show tells the token")
	}
	wantTokenKept(t, n, tap())

	// Another server, which knows nobody: it is there once an agent hears of it.
	second := addK3s(n)
	second.AwaitMembers(1)
	agent.Write(harness.K3sBalancer, harness.K3sServers(second, server), 0o644) // their order changes
	other.Write("/etc/systemd/system/k3s-agent.service.env", "K3S_TOKEN='"+strings.Repeat("f", 32)+"'\n", 0o600)
	harness.Eventually(t, time.Minute, "the new server is a member, and has the image", func() error {
		cells, err := second.States(harness.ShortName)
		if c := cells[second.Name]; err != nil || len(cells) != 4 || c.State != report.Ready {
			return fmt.Errorf("%d hosts, %s (%s): %v", len(cells), c.State, c.Reason, err)
		}
		return nil
	})
	if log := agent.Seeder.Log.String(); !strings.Contains(log, "servers to join") || !strings.Contains(log, second.Address) {
		t.Errorf("the agent does not say that it knows another server: %s", log)
	}
	harness.Eventually(t, time.Minute, "the rotated token is noticed", func() error {
		if got := other.Metric("seeder_secret_changed"); got != 1 {
			return fmt.Errorf("seeder_secret_changed is %v", got)
		}
		return nil
	})
	if log := other.Seeder.Log.String(); !strings.Contains(log, "has a different one") || server.Metric("seeder_secret_changed") != 0 {
		t.Errorf("the rotated token: %s", log)
	}
	other.AwaitMembers(4)
}

// wantTokenKept fails the test where the token, or a plain hash of it, was sent, or written
// where seeder writes.
func wantTokenKept(t *testing.T, n *harness.Network, sent []byte) {
	t.Helper()
	if len(sent) < 1<<20 {
		t.Errorf("%d bytes of network traffic were seen, less than the image has", len(sent))
	}
	sum := sha256.Sum256([]byte(harness.K3sPassword))
	for what, secret := range map[string][]byte{
		"the token": []byte(harness.K3sPassword), "its hash": sum[:], "its hash in hexadecimal": []byte(hex.EncodeToString(sum[:])),
	} {
		if bytes.Contains(sent, secret) {
			t.Errorf("%s crossed the network", what)
		}
		for _, h := range n.Hosts {
			for _, dir := range []string{dataDir, "/run/seeder"} {
				err := filepath.WalkDir(h.Path(dir), func(path string, d fs.DirEntry, err error) error {
					if err != nil || !d.Type().IsRegular() {
						return ignoreGone(err)
					}
					b, err := os.ReadFile(path)
					if bytes.Contains(b, secret) {
						t.Errorf("%s: %s has %s", h.Name, path, what)
					}
					return ignoreGone(err)
				})
				if err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// ignoreGone is err, unless that says that a file was removed meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// TestReadiness: /readyz says that containerd is away, and that it is back.
func TestReadiness(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := harness.NewNetwork(t, "")
	h := addK3s(n)
	answers := func(want ...string) {
		t.Helper()
		harness.Eventually(t, 30*time.Second, fmt.Sprintf("/readyz says %q", want), func() error {
			out, err := h.In(t.Context(), "sh", "-c", `printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' | busybox nc 127.0.0.1 7952`).Output()
			for _, w := range want {
				if !strings.Contains(string(out), w) {
					return fmt.Errorf("%q %v", out, err)
				}
			}
			return nil
		})
	}
	answers("200 OK", "\r\n\r\nok\n")
	h.Containerd.Stop(t, syscall.SIGKILL)
	answers("503", "this host waits for containerd: ")
	h.StartContainerd()
	answers("200 OK", "\r\n\r\nok\n")
	if got := h.Metric("seeder_containerd_up"); got != 1 {
		t.Errorf("seeder_containerd_up is %v", got)
	}
}
