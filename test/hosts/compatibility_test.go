package hosts

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"seeder/test/harness"
)

// compatibility collects what runs with what.
type compatibility struct {
	mu   sync.Mutex
	rows []*combination
}

// combination is a row of docs/compatibility.md.
type combination struct {
	kubelet, containerd, protocol string
	ok                            bool
}

// begin adds a row that has not passed.
func (c *compatibility) begin(kubelet, containerd, protocol string) *combination {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &combination{kubelet: kubelet, containerd: "v" + strings.TrimSuffix(containerd, "+unknown"), protocol: protocol}
	c.rows = append(c.rows, r)
	return r
}

func (c *compatibility) passed(t *testing.T, r *combination) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.ok = !t.Failed()
}

// String is the table, in the order of the versions.
func (c *compatibility) String() string {
	slices.SortFunc(c.rows, func(a, b *combination) int {
		return strings.Compare(a.kubelet+" "+a.containerd, b.kubelet+" "+b.containerd)
	})
	var w strings.Builder
	w.WriteString("| kubelet | containerd | seeder's protocol | result |\n|---|---|---|---|\n")
	for _, r := range c.rows {
		result := "failed"
		if r.ok {
			result = "passed"
		}
		fmt.Fprintf(&w, "| %s | %s | %s | %s |\n", r.kubelet, r.containerd, r.protocol, result)
	}
	fmt.Fprintf(&w, "\nPrinted on %s.\n", time.Now().UTC().Format(time.DateOnly))
	return w.String()
}

// report prints the table, and writes it into the file that KUBELET_REPORT names.
func (c *compatibility) report(t *testing.T) {
	t.Logf("\n%s", c)
	path := os.Getenv("KUBELET_REPORT")
	if path == "" {
		return
	}
	const begin, end = "<!-- begin of what make kubelet writes -->\n", "<!-- end of what make kubelet writes -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table: want the lines %q and %q", path, begin, end)
	}
	if err := os.WriteFile(path, []byte(head+begin+c.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// protocol is that which the host's seeder speaks to others.
func protocol(h *harness.Host) string {
	h.T.Helper()
	var out struct{ Protocol string }
	if err := h.Try(&out, "version"); err != nil {
		h.T.Fatal(err)
	}
	return out.Protocol
}
