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
	d := report.Diagnosis{Node: "n1", Policy: mine, NeverReached: 7, Members: []report.MemberReport{
		{Name: "n2", State: "alive", Policy: &report.Policy{Announcers: []string{"id1"}, Accept: []string{"app:*"}}},
		{Name: "n3", State: "alive", Policy: &report.Policy{}, Ways: []report.Way{{What: report.WayLargeTransfer, Out: true, State: report.WayClosed, Why: "no answer"}}},
		{Name: "n4", State: "alive"},
	}}
	var said []string
	for _, f := range memberFindings(d) {
		said = append(said, f.State+" "+f.Name+" "+f.Subject+": "+f.Detail)
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		StateWarning + " announcers n3: it has none, this node id1", StateOK + " accept n2: it has app:*, this node none",
		StateWarning + " members : 7 members were never reached", "transfer.upload_limit on n1 is 100KiB/s",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in:\n%s", want, all)
		}
	}
	if strings.Contains(all, "announcers n2") || strings.Contains(all, "announcers n4") {
		t.Errorf("hosts that agree, or have not said, are named:\n%s", all)
	}
}
