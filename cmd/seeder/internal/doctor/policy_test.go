package doctor

import (
	"strings"
	"testing"

	"seeder/p2p/report"
)

// TestPoliciesAreCompared: hosts whose `announcers` differ are named with both lists,
// and limits and made-up members are told of.
func TestPoliciesAreCompared(t *testing.T) {
	t.Parallel()
	mine := report.Policy{Announcers: []string{"id1"}, UploadLimit: 100 << 10}
	d := report.Diagnosis{Node: "n1", Policy: mine, NeverReached: 7, Protocols: "1 to 2", Members: []report.MemberReport{
		{Name: "n2", State: "alive", Protocols: "1 to 2", Policy: &report.Policy{Announcers: []string{"id1"}, Accept: []string{"app:*"}}},
		{Name: "n3", State: "alive", Policy: &report.Policy{}, Ways: []report.Way{{What: report.WayLargeTransfer, Out: true, State: report.WayClosed, Why: "no answer"}}},
		{Name: "n4", State: "alive"},
		{Name: "n5", State: "alive", Version: "v1", Protocols: "1"},
		{Name: "n6", State: "dead", Protocols: "1"},
	}}
	var said []string
	for _, f := range memberFindings(d) {
		said = append(said, f.State+" "+f.Name+" "+f.Subject+": "+f.Detail)
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		StateWarning + " announcers n3: it has none, this node id1", StateOK + " accept n2: it has app:*, this node none",
		StateWarning + " protocol n5: it speaks protocol 1 (seeder v1), this node 1 to 2",
		StateWarning + " members : 7 members were never reached", "transfer.upload_limit on n1 is 100KiB/s",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in:\n%s", want, all)
		}
	}
	if strings.Contains(all, "announcers n2") || strings.Contains(all, "announcers n4") || strings.Count(all, " protocol ") != 2 {
		t.Errorf("hosts that agree, or have not said, are named:\n%s", all)
	}
}
