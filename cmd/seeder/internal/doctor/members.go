package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/netaddr"
	"seeder/p2p/report"
)

// checkMembers asks the daemon to try the ways to and from each member.
func (e *exam) checkMembers(ctx context.Context) []finding {
	if _, err := e.ask(ctx); errors.Is(err, fs.ErrPermission) {
		return one(needsRoot("members", ""))
	} else if err != nil {
		return one(finding{Name: "members", State: StateSkipped, Detail: "the daemon does not answer (see daemon, above), so its members are unknown"})
	}
	var d report.Diagnosis
	if err := e.client.Get(ctx, "/v1/diagnosis", nil, &d); err != nil {
		return one(finding{Name: "members", State: stateProblem, Detail: "failed to ask the daemon: " + err.Error(), Fix: "systemctl restart seeder"})
	}
	if s, err := netaddr.Read(nil); err == nil {
		markForeign(&d, s)
	}
	return memberFindings(d)
}

// markForeign notes of members that they tell others an address which this host has, too:
// that of a bridge of containers is the same on every host. No firewall is in the way.
func markForeign(d *report.Diagnosis, s netaddr.Snapshot) {
	for i := range d.Members {
		m := &d.Members[i]
		addr, err := netip.ParseAddr(hostOf(m.Gossip))
		if err != nil || addr.IsLoopback() || !s.Has(addr) || m.Reason != "" || hostOf(m.Gossip) == hostOf(d.Gossip) {
			continue
		}
		m.Reason = fmt.Sprintf("it advertises the address %s, which %s of this host has, too", addr, s.InterfaceOf(addr))
		m.Fix = fmt.Sprintf("on %s: set gossip.advertise to its own address or interface, or remove the wrong one, then `systemctl restart seeder`; `seeder config show` says which it is and why", m.Name)
	}
}

// memberFindings are grouped by what they are about, not by member.
func memberFindings(d report.Diagnosis) []finding {
	var out []finding
	for _, s := range d.Strangers {
		out = append(out, finding{Name: "secret", State: stateProblem, Subject: s.Host,
			Detail: fmt.Sprintf("it tried to connect %s with another secret", term.Ago(s.At)), Fix: differFix})
	}
	if d.NoAddress != "" {
		return append(out, finding{Name: "members", State: stateProblem, Detail: d.NoAddress, Fix: "connect the cable or enable the interface; seeder uses the address as soon as there is one"})
	}
	for _, c := range d.Conflicts {
		out = append(out, finding{Name: "members", State: stateProblem, Subject: c.Other, Detail: c.Reason(), Fix: c.Fix()})
	}
	if len(d.Members) == 0 {
		f := finding{Name: "members", State: StateOK, Detail: "this node is alone"}
		if d.Alone != "" {
			f.State, f.Detail, f.Fix = StateWarning, "this node is alone: "+d.Alone, "see join, above; `seeder doctor` on that host says what it sees"
		}
		return append(out, f)
	}
	for _, m := range d.Members {
		if !slices.ContainsFunc(d.Conflicts, func(c report.Conflict) bool { return c.Reason() == m.Reason }) {
			out = append(out, memberFinding(m))
		}
	}
	for _, topic := range []struct {
		name  string
		whats []string
	}{
		{"transfer", []string{report.WayTransfer}}, {"gossip-udp", []string{report.WayGossipUDP}},
		{"mtu", []string{report.WayLargeTransfer, report.WayLargeGossip}},
	} {
		for _, m := range d.Members {
			if m.State == "alive" && m.Reason == "" && !m.Differs {
				out = append(out, wayFindings(d, m, topic.name, topic.whats)...)
			}
		}
	}
	out = append(out, policyFindings(d)...)
	return append(out, clockFindings(d)...)
}

// memberFinding is about the member as a whole.
func memberFinding(m report.MemberReport) finding {
	f := finding{Name: "members", State: StateOK, Subject: m.Name, Detail: fmt.Sprintf("%s, %s, version %s", m.State, m.Transfer, m.Version)}
	switch {
	case m.Reason != "":
		f.State, f.Detail, f.Fix = stateProblem, m.Reason, cmp.Or(m.Fix, "install the same version of seeder on both hosts")
	case m.Differs:
		f.State, f.Detail, f.Fix = stateProblem, "its secret differs from this host's", differFix
	case m.State != "alive":
		f.State = stateProblem
		f.Detail = fmt.Sprintf("it is %s: it is not responding and did not leave cleanly; ", m.State)
		if open := openWays(m); len(open) > 0 {
			f.Detail += fmt.Sprintf("the host is up (open: %s), so its gossip port is closed to this host, or its daemon has only just started", listed(open, 3))
			f.Fix = fmt.Sprintf("on %s: %s", m.Name, openPort(portOf(m.Gossip)+"/udp"))
		} else {
			f.Detail += fmt.Sprintf("nothing answers at %s/udp and %s/tcp", m.Gossip, m.Transfer)
			f.Fix = fmt.Sprintf("is %s up, and `systemctl status seeder` active there? If the host will not come back: `seeder members forget %s`", m.Name, m.Name)
		}
	}
	return f
}

func openWays(m report.MemberReport) []string {
	var out []string
	for _, w := range m.Ways {
		if w.State == report.WayOpen {
			out = append(out, w.What)
		}
	}
	return out
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// wayFindings are about one topic and one member: what is closed or unknown in each
// direction, or that all is open.
func wayFindings(d report.Diagnosis, m report.MemberReport, name string, whats []string) []finding {
	var out []finding
	tried := false
	for _, w := range m.Ways {
		if !slices.Contains(whats, w.What) {
			continue
		}
		tried = tried || w.State == report.WayOpen
		from, to := d.Node, m.Name
		if !w.Out {
			from, to = to, from
		}
		f := finding{Name: name, Subject: from + " -> " + to, Detail: w.Why}
		switch w.State {
		case report.WayClosed:
			f.State = stateProblem
			f.Detail, f.Fix = closedWay(d, m, w)
			f.Detail += limitNote(d, m, w)
		case report.WayUnknown:
			f.State = StateSkipped
		default:
			continue
		}
		out = append(out, f)
	}
	if len(out) == 0 && tried {
		out = one(finding{Name: name, State: StateOK, Subject: m.Name, Detail: "both directions"})
	}
	return out
}

// closedWay says what is closed and on which host to open it for whom.
func closedWay(d report.Diagnosis, m report.MemberReport, w report.Way) (detail, fix string) {
	source, target, at := hostOf(d.Gossip), m.Transfer, m.Name
	gossip := m.Gossip
	if !w.Out {
		source, target, gossip, at = hostOf(m.Gossip), d.Transfer, d.Gossip, d.Node
	}
	closed := func(address, network string) (string, string) {
		return fmt.Sprintf("%s/%s cannot be reached: %s", address, network, w.Why),
			fmt.Sprintf("on %s allow %s/%s from %s: %s", at, portOf(address), network, source, openFor(source, portOf(address), network))
	}
	switch w.What {
	case report.WayTransfer:
		return closed(target, "tcp")
	case report.WayGossipUDP:
		detail, fix = closed(gossip, "udp")
		if w.Out && slices.ContainsFunc(m.Ways, func(o report.Way) bool { return o.What == w.What && o.State == report.WayUnknown }) {
			detail += " (or its answers are blocked)"
		}
		return detail, fix
	}
	what := "gossip's packets"
	if w.What == report.WayLargeTransfer {
		what = "connections"
	}
	return fmt.Sprintf("small packets arrive, full ones of %s do not (%s): the MTU of an interface is larger than what the path carries", what, w.Why),
		fmt.Sprintf("find the largest that passes with `ping -M do -s 1372 %s` (1372 is an MTU of 1400) and set it on the interfaces of both hosts: `ip link set dev IFACE mtu 1400`; or let ICMP \"fragmentation needed\" through the firewalls between them", hostOf(m.Gossip))
}

// openFor are commands that open a port for one host.
func openFor(source, port, network string) string {
	return fmt.Sprintf("`ufw allow proto %[2]s from %[3]s to any port %[1]s`, or `firewall-cmd --permanent --add-port=%[1]s/%[2]s && firewall-cmd --reload`, or `iptables -I INPUT -p %[2]s -s %[3]s --dport %[1]s -j ACCEPT`",
		port, network, source)
}

const (
	// Clocks decide nothing in seeder but ties of two announcements made at once;
	// certificates, logs and Kubernetes' leases are what suffers.
	clockWarning = 2 * time.Second
	clockProblem = 30 * time.Second
)

// clockFindings compare all clocks with their median, this host's among them, so that
// the one that is off is named and not those that are right.
func clockFindings(d report.Diagnosis) []finding {
	offsets := []time.Duration{0}
	for _, m := range d.Members {
		if m.Clock != nil {
			offsets = append(offsets, time.Duration(m.Clock.AheadMS)*time.Millisecond)
		}
	}
	if len(offsets) == 1 {
		return nil
	}
	slices.Sort(offsets)
	median := offsets[len(offsets)/2]
	if len(offsets) == 2 {
		median = 0 // which of two is right nobody knows
	}
	var out []finding
	add := func(name string, ahead, trip time.Duration) {
		f := finding{Name: "clock", State: StateOK, Subject: name, Detail: "right"}
		off := (ahead - median).Abs() - trip/2
		than := "most hosts'"
		if len(offsets) == 2 {
			than = "this host's"
		}
		if off > clockWarning {
			way := "ahead of"
			if ahead < median {
				way = "behind"
			}
			f.State = StateWarning
			if off > clockProblem {
				f.State = stateProblem
			}
			f.Detail = fmt.Sprintf("its clock is %s %s %s", (ahead - median).Abs().Round(100*time.Millisecond), way, than)
			f.Fix = fmt.Sprintf("on %s: `timedatectl set-ntp true`; `timedatectl timesync-status` or `chronyc tracking` says how far it is", name)
			if len(offsets) == 2 {
				f.Fix = fmt.Sprintf("on the one of %s and %s that is wrong: `timedatectl set-ntp true`; `timedatectl timesync-status` or `chronyc tracking` says how far it is", d.Node, name)
			}
		}
		out = append(out, f)
	}
	if len(offsets) > 2 {
		add(d.Node, 0, 0)
	}
	for _, m := range d.Members {
		if m.Clock != nil {
			add(m.Name, time.Duration(m.Clock.AheadMS)*time.Millisecond, time.Duration(m.Clock.TripMS)*time.Millisecond)
		}
	}
	return out
}
