package doctor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/kubelet"
)

// TestDoctorFindsUnfinishedPulls: a note of the kubelet that a pull began and did not end
// is found on this host, with the commands that help.
func TestDoctorFindsUnfinishedPulls(t *testing.T) {
	t.Parallel()
	e := newTestExam(t, "")
	wantFinding(t, e.checkKubelet(t.Context()), "kubelet", "", StateOK, "no pull was left unfinished", "")
	file := filepath.Join(e.root, kubelet.Pulling, "sha256-6ce5")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"kind":"ImagePullIntent","image":"slow:1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, e.checkKubelet(t.Context()), "kubelet", "slow:1", StateWarning, "an earlier pull of slow:1 never ended",
		"rm /"+kubelet.Pulling+"/sha256-6ce5 && systemctl restart kubelet")
}
