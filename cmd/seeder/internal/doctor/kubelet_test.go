package doctor

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestDoctorFindsWhatTheKubeletPulled: which announced images no pod may start without another
// pull, and by which names pods may start the others.
func TestDoctorFindsWhatTheKubeletPulled(t *testing.T) {
	t.Parallel()
	records := map[string]kubelet.Record{
		"sha256:a": {Names: []string{"a", "r.example/a"}},
		"sha256:b": {Bound: []string{"r.example/b"}},
		"sha256:c": {File: "/FILE", Fix: "rm /FILE"},
	}
	const lib = "docker.io/library/"
	ids := map[string]string{lib + "a:1": "sha256:a", lib + "a:2": "sha256:a", lib + "b:1": "sha256:b", lib + "c:1": "sha256:c", lib + "d:1": "sha256:d"}
	refs := slices.Sorted(maps.Keys(ids))
	asked := func(ref string) (string, error) { return ids[ref], nil }
	found, limits := pulledFindings(byReference(records, refs, asked))
	wantFinding(t, found, "kubelet", "c:1", stateProblem, "the image is here, but the kubelet has pulled that image itself, was ended", "`rm /FILE`")
	const want = "; pods that must not pull may write a:1 only as a or r.example/a; a:2 only as a or r.example/a; b:1 only as r.example/b with the credentials of its pull"
	if len(found) != 1 || limits != want {
		t.Errorf("%d findings, limits %q, want %q", len(found), limits, want)
	}
	ids[lib+"a:3"] = "sha256:a"
	if _, limits := pulledFindings(byReference(records, slices.Sorted(maps.Keys(ids)), asked)); !strings.HasSuffix(limits, "a:3 only as a or r.example/a; and 1 more images by some names alone") {
		t.Errorf("limits of four: %q", limits)
	}
	n := 0
	if got := byReference(records, refs, func(string) (string, error) { n++; return "", errors.New("away") }); len(got) != 0 || n != 1 {
		t.Errorf("CRI that does not answer is asked %d times: %v", n, got)
	}
	if found, limits := pulledFindings(nil); found != nil || limits != "" {
		t.Errorf("of nothing: %v %q", found, limits)
	}
}
