package hosts

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"seeder/test/harness"
)

// TestFirewallRules: with the rules of docs/operations.md for nftables, hosts that drop
// everything else find each other and bring an image from one to the other.
func TestFirewallRules(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^nft add rule .+$`).FindAllString(string(page), -1)
	if len(rules) != 2 {
		t.Fatalf("docs/operations.md has %d rules for nftables: %q", len(rules), rules)
	}
	n := harness.NewNetwork(t, "")
	for range 2 {
		n.AddHost(harness.Newest)
	}
	a, b := n.Hosts[0], n.Hosts[1]
	for _, h := range n.Hosts {
		h.Sh(`nft add table inet filter
nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'
nft add rule inet filter input iif lo accept
nft add rule inet filter input ct state established,related accept`)
		h.StartContainerd()
		h.StartSeeder()
	}
	if _, err := harness.Dial(a, b.Address+":7951"); err == nil {
		t.Fatal("the hosts drop nothing")
	}
	for _, h := range n.Hosts {
		for _, rule := range rules {
			h.Sh(strings.NewReplacer("10.0.0.0/24", "10.77.0.0/24", " accept", " counter accept").Replace(rule))
		}
	}
	a.AwaitMembers(2)
	b.AwaitMembers(2)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 1 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	b.Ready("hello")
	for i, rule := range rules { // what a host has begun itself comes back without one
		used := regexp.MustCompile(`dport \S+ counter packets [1-9]`)
		if lists := listed(a, i) + listed(b, i); !used.MatchString(lists) {
			t.Errorf("nothing passes by %q:\n%s", rule, lists)
		}
	}
}

// listed is the i-th of the rules that were added last.
func listed(h *harness.Host, i int) string {
	lines := strings.Split(strings.TrimSpace(h.Sh("nft list chain inet filter input | grep 'dport '")), "\n")
	return lines[i] + "\n"
}
