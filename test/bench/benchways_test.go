package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// byLoop does what people do by hand: export once, copy to one host after the
// other, import there. The copy has no ssh to slow it down.
func byLoop(n *harness.Network, t *testing.T, load benchSet) {
	t.Helper()
	first := n.Hosts[0]
	file := first.Path("/var/lib/tmp/image.tar")
	first.Ctr(append([]string{"images", "export", "/var/lib/tmp/image.tar"}, load.names()...)...)
	for _, h := range n.Hosts[1:] {
		if err := copyTo(first, h, file); err != nil {
			t.Fatal(err)
		}
		h.Ctr("images", "import", "/var/lib/tmp/image.tar")
		if err := os.Remove(h.Path("/var/lib/tmp/image.tar")); err != nil {
			t.Fatal(err)
		}
	}
}

// copyTo sends a file over the network to the same place of another host.
func copyTo(h *harness.Host, to *harness.Host, file string) error {
	l := harness.Listen(to, to.Address+":9")
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		got <- func() error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			f, err := os.Create(to.Path("/var/lib/tmp/image.tar"))
			if err != nil {
				return err
			}
			_, err = io.Copy(f, conn)
			return errors.Join(err, f.Close())
		}()
	}()
	conn, err := harness.Dial(h, l.Addr().String())
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	_, err = io.Copy(conn, f)
	return errors.Join(err, f.Close(), conn.Close(), <-got)
}

// byRegistry pushes to a registry on the first host, from which all others pull
// at once. It returns the CPU seconds of the registry.
func byRegistry(n *harness.Network, t *testing.T, load benchSet) (cpu float64) {
	t.Helper()
	first := n.Hosts[0]
	first.Write("/etc/registry.yml", `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: "0.0.0.0:5000"}
`, 0o644)
	d := first.Start(nil, "docker-registry", "serve", "/etc/registry.yml")
	defer func() { <-d.Done }()
	defer d.Cmd.Process.Kill()
	defer syscall.Kill(d.PID, syscall.SIGKILL)
	harness.Eventually(t, 20*time.Second, "the registry answers", func() error {
		conn, err := harness.Dial(first, first.Address+":5000")
		if err != nil {
			return err
		}
		return conn.Close()
	})
	remote := func(ref string) string { return first.Address + ":5000/library/" + ref }
	for _, ref := range load.refs {
		first.Ctr("images", "push", "--plain-http", remote(ref), fullName(ref))
	}
	var wg sync.WaitGroup
	errs := make([]error, len(n.Hosts))
	for i, h := range n.Hosts[1:] {
		wg.Go(func() {
			for _, ref := range load.refs {
				if out, err := h.CtrCmd("images", "pull", "--plain-http", remote(ref)).CombinedOutput(); err != nil {
					errs[i] = fmt.Errorf("pull on %s: %w: %s", h.Name, err, out)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return cpuSeconds(t, d.PID)
}

// byTLS moves the image's bytes to each other host and does nothing with them:
// HTTP/1.1 over TLS, four connections to each, as a measure of the machine.
func byTLS(n *harness.Network, t *testing.T, load benchSet) {
	t.Helper()
	const conns = 4
	if load.content == nil {
		t.Fatal("tls has all bytes in memory: not with this image")
	}
	all := load.content()
	first := n.Hosts[0]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	srv.Listener.Close()
	srv.Listener = harness.Listen(first, first.Address+":8443")
	srv.StartTLS()
	defer srv.Close()
	var wg sync.WaitGroup
	for _, h := range n.Hosts[1:] {
		tr := srv.Client().Transport.(*http.Transport).Clone()
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return harness.Dial(h, first.Address+":8443") }
		tr.TLSClientConfig.ServerName = "example.com" // what the certificate is for
		tr.ReadBufferSize = 64 << 10
		for i := range conns {
			wg.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", len(all)*i/conns, len(all)*(i+1)/conns-1))
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10)); err != nil {
					t.Error(err)
				}
			})
		}
		defer tr.CloseIdleConnections()
	}
	wg.Wait()
}
