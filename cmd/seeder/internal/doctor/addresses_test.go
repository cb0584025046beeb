package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/netaddr"
	"seeder/p2p/report"
)

// withDocker is a host with Docker on a LAN.
func withDocker() netaddr.Snapshot {
	at := func(prefix string) []netaddr.Address {
		return []netaddr.Address{{Prefix: netip.MustParsePrefix(prefix)}}
	}
	return netaddr.Snapshot{Interfaces: []netaddr.Interface{
		{Name: "eth0", Up: true, Addresses: at("10.79.0.11/24")}, {Name: "docker0", Kind: "bridge", Up: true, Addresses: at("172.17.0.1/16")},
	}}
}

// TestDoctorOfAddresses: where an address or a name is the reason, doctor says so, and
// accuses no firewall.
func TestDoctorOfAddresses(t *testing.T) {
	t.Parallel()
	closed := []report.Way{{What: report.WayTransfer, Out: true, State: report.WayClosed, Why: "no answer"}, {What: report.WayGossipUDP, Out: true, State: report.WayClosed, Why: "no answer"}}
	name := report.Conflict{Kind: report.ConflictName, Name: "node", Other: "node", Address: "10.0.0.2:7950", OtherAddress: "10.0.0.3:7950"}
	identity := report.Conflict{Kind: report.ConflictIdentity, Name: "h2", Other: "h3", Address: "10.0.0.2:7950", OtherAddress: "10.0.0.3:7950"}
	for what, tc := range map[string]struct {
		d           report.Diagnosis
		subject     string
		detail, fix string
	}{
		"no address": {report.Diagnosis{Node: "h1", NoAddress: "no address that other hosts could reach was found", Members: []report.MemberReport{{Name: "h2", State: "dead", Ways: closed}}},
			"", "no address that other hosts could reach", "enable the interface"},
		"one name": {report.Diagnosis{Node: "h1", Conflicts: []report.Conflict{name}, Members: []report.MemberReport{{Name: "node (10.0.0.3:7950)", State: "alive", Reason: name.Reason(), Fix: name.Fix(), Ways: closed}}},
			"node", "two hosts have the node name node: 10.0.0.2:7950 and 10.0.0.3:7950", "set another node_name"},
		"one identity": {report.Diagnosis{Node: "h1", Conflicts: []report.Conflict{identity}}, "h3", "h2 (10.0.0.2:7950) and h3 (10.0.0.3:7950) have the same identity", "rm /var/lib/seeder/identity"},
		"a bridge of containers": {report.Diagnosis{Node: "h1", Gossip: "10.79.0.11:7950", Members: []report.MemberReport{{Name: "h2", State: "alive", Gossip: "172.17.0.1:7950", Transfer: "172.17.0.1:7951", Ways: closed}}},
			"h2", "it advertises the address 172.17.0.1, which docker0 of this host has, too", "set gossip.advertise"},
	} {
		markForeign(&tc.d, withDocker())
		out := memberFindings(tc.d)
		wantFinding(t, out, "members", tc.subject, stateProblem, tc.detail, tc.fix)
		problems := 0
		for _, f := range out {
			if f.State == stateProblem {
				problems++
			}
			if strings.Contains(f.Fix, "ufw") || strings.Contains(f.Fix, " allow ") {
				t.Errorf("%s: a firewall is accused: %+v", what, f)
			}
		}
		if problems != 1 {
			t.Errorf("%s: %d problems: %+v", what, problems, out)
		}
	}
}

// TestNoFirewallIsAccusedOfTheHostsOwnAddress: an address that this node tells others is
// not another host's.
func TestNoFirewallIsAccusedOfTheHostsOwnAddress(t *testing.T) {
	t.Parallel()
	d := report.Diagnosis{Node: "h1", Gossip: "10.79.0.11:7950", Members: []report.MemberReport{{Name: "h2", State: "alive", Gossip: "10.79.0.12:7950"}, {Name: "h3", State: "alive", Gossip: "10.79.0.11:17950"}}}
	if markForeign(&d, withDocker()); d.Members[0].Reason != "" || d.Members[1].Reason != "" {
		t.Errorf("%+v", d.Members)
	}
}

// TestVerdictOfConflicts: hosts that cannot be told apart are red on every host, once,
// and those two are not ready.
func TestVerdictOfConflicts(t *testing.T) {
	t.Parallel()
	c := report.Conflict{Kind: report.ConflictName, Name: "node", Other: "node", Address: "10.0.0.2:7950", OtherAddress: "10.0.0.3:7950"}
	status := report.Status{Containerd: report.ContainerdStatus{OK: true}, Join: report.JoinStatus{OK: true}}
	rows := []report.MemberState{{Name: "node (10.0.0.3:7950)", State: "alive", Reason: c.Reason() + "; " + c.Fix()}}
	for _, self := range []bool{false, true} {
		c.Self = self
		status.Conflicts = []report.Conflict{c}
		v := verdict.Decide(verdict.Input{Status: status, Members: rows})
		if v.Level != verdict.Red || len(v.Findings) != 1 || !strings.Contains(v.Findings[0].String(), "two hosts have the node name") || !strings.Contains(v.Findings[0].Command, "node_name") {
			t.Errorf("%+v", v)
		}
		if got := len(v.Blocking()) == 1; got != self {
			t.Errorf("self %v: %+v", self, v.Blocking())
		}
	}
}
