package gossip

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"
)

// TestUndialable: a member that tells an address which cannot be meant is excluded, with
// the reason: one that no other host reaches, and one that is this host's own.
func TestUndialable(t *testing.T) {
	t.Parallel()
	lan := place{address: netip.MustParseAddr("10.0.0.1"), port: 7950}
	for _, tc := range []struct {
		of   string
		own  place
		want string // empty: it may be meant
	}{
		{"10.0.0.2:7950", lan, ""},
		{"10.0.0.1:7950", lan, "10.0.0.1:7950, which is this host's"},
		{"[::ffff:10.0.0.1]:7950", lan, "10.0.0.1:7950, which is this host's"},
		{"10.0.0.1:7960", lan, ""}, // another node on this host
		{"127.0.0.1:7950", lan, "127.0.0.1, which no other host can reach"},
		{"0.0.0.0:7950", lan, "0.0.0.0, which no other host can reach"},
		{"[::]:7950", lan, "::, which no other host can reach"},
		{"[fe80::1]:7950", lan, "fe80::1, which no other host can reach"},
		{"169.254.1.1:7950", lan, "169.254.1.1, which no other host can reach"},
		{"127.0.0.1:7960", place{address: netip.MustParseAddr("127.0.0.1"), port: 7950}, ""}, // nodes on one host
	} {
		at := netip.MustParseAddrPort(tc.of)
		got := undialable(&memberlist.Node{Addr: at.Addr().AsSlice(), Port: at.Port()}, tc.own)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s at %s: %q, want %q", tc.of, tc.own.address, got, tc.want)
		}
	}
	if got := undialable(&memberlist.Node{Addr: []byte{1}}, lan); got == "" {
		t.Error("an address of one byte is taken")
	}
}
