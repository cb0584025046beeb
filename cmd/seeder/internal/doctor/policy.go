package doctor

import (
	"fmt"
	"slices"

	"github.com/docker/go-units"

	"seeder/p2p/report"
)

// policyFindings compare what the hosts' configurations let them take.
func policyFindings(d report.Diagnosis) []finding {
	var out []finding
	if d.NeverReached > 0 {
		out = append(out, finding{Name: "members", State: StateWarning,
			Detail: fmt.Sprintf("%d members were never reached: they are on hosts that this one cannot reach, or a member makes them up; those that do not exist are gone within minutes", d.NeverReached),
			Fix:    "if they stay, replace the secret on all hosts but the one that makes them up (docs/security.md)"})
	}
	out = append(out, differing(d, "announcers", StateWarning, "one host accepts what another rejects; make `announcers` the same on all hosts and restart seeder there", func(p report.Policy) []string { return p.Announcers })...)
	out = append(out, protocolFindings(d)...)
	return append(out, differing(d, "accept", StateOK, "", func(p report.Policy) []string { return p.Accept })...)
}

// protocolFindings name the members that speak other protocols than this node, also where
// they have one in common: the upgrade is not through.
func protocolFindings(d report.Diagnosis) []finding {
	var out []finding
	for _, m := range d.Members {
		if m.State != "alive" || m.Protocols == "" || m.Protocols == d.Protocols {
			continue
		}
		out = append(out, finding{Name: "protocol", State: StateWarning, Subject: m.Name,
			Detail: fmt.Sprintf("it speaks protocol %s (seeder %s), this node %s", m.Protocols, m.Version, d.Protocols),
			Fix:    "install the same version of seeder on all hosts"})
	}
	return out
}

// differing names the members whose list is another than this node's.
func differing(d report.Diagnosis, name, state, fix string, list func(report.Policy) []string) []finding {
	mine := list(d.Policy)
	var out []finding
	for _, m := range d.Members {
		if m.Policy == nil || slices.Equal(list(*m.Policy), mine) {
			continue
		}
		out = append(out, finding{Name: name, State: state, Subject: m.Name, Fix: fix,
			Detail: fmt.Sprintf("it has %s, this node %s", entries(list(*m.Policy)), entries(mine))})
	}
	return out
}

func entries(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return listed(list, 4)
}

// limitNote says which limit holds chunks up on the sending side of a way, so that
// nobody takes that for what is closed.
func limitNote(d report.Diagnosis, m report.MemberReport, w report.Way) string {
	sender, receiver := m.Policy, &d.Policy
	at, to := m.Name, d.Node
	if w.Out {
		sender, receiver, at, to = &d.Policy, m.Policy, d.Node, m.Name
	}
	note := ""
	if sender != nil && sender.UploadLimit > 0 {
		note += fmt.Sprintf("; transfer.upload_limit on %s is %s/s, which limits chunks only", at, units.BytesSize(float64(sender.UploadLimit)))
	}
	if receiver != nil && receiver.DownloadLimit > 0 {
		note += fmt.Sprintf("; transfer.download_limit on %s is %s/s, which limits chunks only", to, units.BytesSize(float64(receiver.DownloadLimit)))
	}
	return note
}
