package hosts

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// watchOutput records where packets of TCP and UDP go to from the host.
const watchOutput = `table inet watch {
	set v4 { type ipv4_addr . inet_proto . inet_service . inet_service; size 65535; flags dynamic; }
	set v6 { type ipv6_addr . inet_proto . inet_service . inet_service; size 65535; flags dynamic; }
	chain output {
		type filter hook output priority 0; policy accept;
		meta l4proto { tcp, udp } meta nfproto ipv4 add @v4 { ip daddr . meta l4proto . th sport . th dport }
		meta l4proto { tcp, udp } meta nfproto ipv6 add @v6 { ip6 daddr . meta l4proto . th sport . th dport }
	}
}
`

// recordOutput begins to record; the host gets a route to everywhere, so that packets to
// anywhere are recorded.
func recordOutput(h *harness.Host) {
	h.T.Helper()
	h.Write("/etc/watch.nft", watchOutput, 0o644)
	h.Sh("ip route add default dev eth0 && nft -f /etc/watch.nft")
}

// sent lists what was recorded, as ADDRESS/PROTOCOL SOURCE DESTINATION of the ports that
// seeder or the kernel do not choose at random.
func sent(h *harness.Host) []string {
	h.T.Helper()
	var out []string
	for _, set := range []string{"v4", "v6"} {
		var list struct {
			Nftables []struct {
				Set struct{ Elem []json.RawMessage }
			}
		}
		b := harness.Run(h.T, h.In(h.T.Context(), "nft", "-n", "-j", "list", "set", "inet", "watch", set))
		if err := json.Unmarshal([]byte(b), &list); err != nil {
			h.T.Fatalf("nft printed %q: %v", b, err)
		}
		for _, n := range list.Nftables {
			for _, raw := range n.Set.Elem {
				out = append(out, packetFlow(h.T, raw))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// packetFlow reads an element of a set: with or without a wrapper, as the versions have it.
func packetFlow(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var e struct {
		Concat []any
		Elem   struct{ Val struct{ Concat []any } }
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	c := append(e.Concat, e.Elem.Val.Concat...)
	if len(c) != 4 {
		t.Fatalf("an element of the set is %s", raw)
	}
	text := make([]string, 4)
	for i, v := range c {
		text[i] = fmt.Sprint(v)
		if p, ok := v.(float64); ok && i >= 2 && p >= 32768 { // ip_local_port_range
			text[i] = "*"
		}
	}
	return fmt.Sprintf("%s/%s %s>%s", text[0], map[string]string{"6": "tcp", "17": "udp", "tcp": "tcp", "udp": "udp"}[text[1]], text[2], text[3])
}

var socketLine = regexp.MustCompile(`^\S+\s+ESTAB\s+\d+\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s*(.*)$`)

// unixPeers are the paths of the unix sockets that the host's daemon is connected to, and
// those of its own that others are connected to.
func unixPeers(h *harness.Host) []string {
	h.T.Helper()
	out := harness.Run(h.T, h.In(h.T.Context(), "ss", "-xpnH"))
	paths, mine := map[string]string{}, map[string]string{} // by inode; own inode -> peer's
	for line := range strings.Lines(out) {
		m := socketLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		paths[m[2]] = m[1]
		if strings.Contains(m[4], fmt.Sprintf("pid=%d,", pidInside(h, h.Seeder))) {
			mine[m[2]] = m[3]
		}
	}
	var peers []string
	for own, peer := range mine {
		path := paths[own] // of an accepted connection
		if path == "*" {
			path = paths[peer]
		}
		peers = append(peers, path)
	}
	slices.Sort(peers)
	return slices.Compact(peers)
}

// pidInside is a daemon's pid as the host counts.
func pidInside(h *harness.Host, d *harness.Daemon) int {
	h.T.Helper()
	var pid int
	out := harness.Run(h.T, h.In(h.T.Context(), "sh", "-c", "grep -l '^seeder$' /proc/[0-9]*/comm | head -1"))
	if _, err := fmt.Sscanf(out, "/proc/%d/comm", &pid); err != nil {
		h.T.Fatalf("find seeder among %q: %v", out, err)
	}
	return pid
}

// apiServer is the API server that the kubeconfig of a host of k3s names.
const apiServer = "127.0.0.1:6443"

// serveAPI makes the host one of k3s whose API server has a pod that waits, and returns how
// often it was asked by whom.
func serveAPI(h *harness.Host) (asked func() map[string]int) {
	h.T.Helper()
	var mu sync.Mutex
	by := map[string]int{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		by[r.Method+" "+r.URL.Path+" "+r.UserAgent()]++
		mu.Unlock()
		fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"namespace":"web","name":"waits"},"spec":{"nodeName":"h1","containers":[{"name":"c","image":"other:1","imagePullPolicy":"Never"}]},"status":{"phase":"Pending","containerStatuses":[{"name":"c","state":{"waiting":{"reason":"ErrImageNeverPull"}}}]}}]}`)
	}))
	srv.Listener.Close()
	srv.Listener = harness.Listen(h, apiServer)
	srv.StartTLS()
	h.T.Cleanup(srv.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	h.Sh("mkdir -p /etc/rancher/k3s")
	h.Write("/etc/rancher/k3s/k3s.yaml", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority-data: %s}}]
users: [{name: u, user: {token: any}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, apiServer, base64.StdEncoding.EncodeToString(ca)), 0o600)
	return func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(by)
	}
}

// TestConnections: the daemon sends to members and to nobody else, and is connected to
// containerd alone: no update is looked for, nothing is reported, no name is looked up.
// Where the host has a kubeconfig, the page also has it read the pods of that API server.
// Packets are recorded where they leave the host, from before the daemon starts until it
// has ended.
func TestConnections(t *testing.T) {
	t.Parallel()
	n := harness.NewNetwork(t, "")
	const stranger = "203.0.113.9"
	for range 3 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		recordOutput(h)
		h.In(t.Context(), "timeout", "1", "busybox", "nc", stranger, "80").Run() // nobody is there
		if got := sent(h); !slices.Contains(got, stranger+"/tcp *>80") {
			t.Fatalf("the watch does not see packets to %s: %q", stranger, got)
		}
		h.Sh("nft flush set inet watch v4")
		h.StartSeeder()
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(3)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Random: 8 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	for _, h := range n.Hosts {
		h.Ready("hello")
		if out := doctor(h); !out.OK {
			t.Errorf("doctor on %s:\n%s", h.Name, out)
		}
		if got := unixPeers(h); !slices.Equal(got, []string{harness.Socket}) {
			t.Errorf("%s's daemon has connections to %q, want containerd's socket alone", h.Name, got)
		}
	}
	page := func() string {
		return harness.Run(t, a.In(t.Context(), "busybox", "wget", "-qO-", "http://127.0.0.1:7952/"))
	}
	page()
	if got := sent(a); slices.ContainsFunc(got, func(flow string) bool { return strings.HasSuffix(flow, ">6443") }) {
		t.Errorf("an API server is asked, and no kubeconfig names one: %q", got)
	}
	asked := serveAPI(a)
	harness.Eventually(t, time.Minute, "the page shows the pod that waits", func() error {
		if text := page(); !strings.Contains(text, "waits") || !strings.Contains(text, "other:1") {
			return errors.New("it does not")
		}
		return nil
	})
	if got := asked(); len(got) != 1 || got["GET /api/v1/pods Go-http-client/1.1"] == 0 {
		t.Errorf("the API server was asked %v, want pods to be read by the daemon alone", got)
	}
	b.Seeder.Stop(t, syscall.SIGKILL) // it is looked for, and found again
	harness.Eventually(t, time.Minute, "h2 is dead on h1", func() error {
		if s := a.MemberState(b); s != "dead" {
			return errors.New(s)
		}
		return nil
	})
	b.StartSeeder()
	a.AwaitMembers(3)
	a.Run("withdraw", "--purge", harness.ShortName)
	for _, h := range n.Hosts {
		h.Seeder.Stop(t, syscall.SIGTERM)
		got := sent(h)
		for _, flow := range got {
			if !isExpected(h, flow) && !(h == a && isAPI(flow)) {
				t.Errorf("%s sent %s", h.Name, flow)
			}
		}
		if other := n.Hosts[(slices.Index(n.Hosts, h)+1)%3].Address; !slices.Contains(got, other+"/udp 7950>7950") {
			t.Errorf("%s sent no gossip to %s: %q", h.Name, other, got)
		}
	}
}

// isAPI reports whether a flow is a question to the API server, or its answer.
func isAPI(flow string) bool {
	return flow == "127.0.0.1/tcp *>6443" || flow == "127.0.0.1/tcp 6443>*"
}

// isExpected reports whether a flow goes to seeder on a member, is an answer to one, or
// stays on the host: the command line and the test ask for metrics and the page there.
func isExpected(h *harness.Host, flow string) bool {
	address, ports, _ := strings.Cut(flow, "/")
	switch ports {
	case "tcp *>7951", "tcp 7951>*", "udp 7950>7950":
		return slices.ContainsFunc(h.Net.Hosts, func(m *harness.Host) bool { return m.Address == address })
	case "tcp *>7952", "tcp 7952>*":
		return address == "127.0.0.1"
	}
	return false
}
