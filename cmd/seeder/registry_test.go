package main

import (
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/store/storetest"
)

// TestOCIConformance: the conformance suite of the OCI distribution-spec finds nothing wrong
// with what the registry of a daemon does, neither of one that takes pushes nor of one that
// only reads. What is left out is listed here, each with its reason, and in
// docs/operations.md. `make conformance` builds the suite and names it in CONFORMANCE.
func TestOCIConformance(t *testing.T) {
	t.Parallel()
	program := os.Getenv("CONFORMANCE")
	if program == "" {
		t.Skip("CONFORMANCE does not name the conformance suite; make conformance")
	}
	t.Run("push", func(t *testing.T) {
		t.Parallel()
		r := startRegistry(t, "SEEDER_REGISTRY_PUSH=true")
		r.conforms(program, []string{
			"OCI_DATA_SHA512=false",                                   // chunks and their index are named by sha256 alone
			"OCI_DATA_ARTIFACT=false", "OCI_DATA_ARTIFACT_LIST=false", // what no kubelet can run is not announced
			"OCI_DATA_SUBJECT=false", "OCI_DATA_SUBJECT_MISSING=false", // those are artifacts, too
			"OCI_DATA_SUBJECT_LIST=false", "OCI_API_REFERRER=false", // so there are no referrers
			"OCI_DATA_NONDISTRIBUTABLE=false",                             // hosts without the missing layers cannot run it
			"OCI_API_TAGS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", // seeder withdraw does that, with its questions
			"OCI_API_BLOBS_DELETE=false", // containerd's garbage collection does
		},
			// An index of no image has nothing that a kubelet can run; no switch of the suite leaves it
			// out alone.
			"empty-index/head/manifest-head-by-tag", "empty-index/pull/manifest-by-tag", "empty-index/push/manifest-by-tag")
	})
	t.Run("read", func(t *testing.T) {
		t.Parallel()
		r := startRegistry(t)
		img := storetest.NewIndex(t, "docker.io/conformance/repo1:v1", 3, "linux/amd64", "linux/arm64")
		archive := filepath.Join(t.TempDir(), "app.tar")
		if err := os.WriteFile(archive, img.OCIArchive(t), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := seeder(t.Context(), r.socket, "announce", "--from", archive); code != cli.ExitDone {
			t.Fatal(stderr)
		}
		manifests, blobs := []string{img.Target.Digest.String()}, []string{}
		for _, m := range img.Manifests {
			manifests = append(manifests, m.Descriptor.Digest.String())
		}
		for d := range maps.Keys(img.Blobs) {
			if !slices.Contains(manifests, d.String()) {
				blobs = append(blobs, d.String())
			}
		}
		r.conforms(program, []string{
			"OCI_API_PUSH=false", "OCI_API_REFERRER=false",
			"OCI_API_TAGS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_BLOBS_DELETE=false",
			"OCI_RO_DATA_TAGS=v1", "OCI_RO_DATA_MANIFESTS=" + strings.Join(manifests, " "), "OCI_RO_DATA_BLOBS=" + strings.Join(blobs, " "),
		})
	})
}

// registryOf is the registry of a daemon.
type registryOf struct {
	*testing.T
	addr, socket, user, password string
}

// startRegistry starts a daemon with a registry. It serves once the socket answers.
func startRegistry(t *testing.T, env ...string) registryOf {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, socket := startDaemon(t, append([]string{"env", "SEEDER_REGISTRY_BIND=" + addr}, env...)...)
	credentials, err := cli.ReadBounded(filepath.Join(filepath.Dir(socket), "data", "registry-credentials"), 1<<10)
	if err != nil {
		t.Fatal(err)
	}
	user, password, _ := strings.Cut(strings.TrimSpace(string(credentials)), ":")
	return registryOf{t, addr, socket, user, password}
}

// conforms runs the suite as env says. Of its cases exactly those in failing have to fail.
func (r registryOf) conforms(program string, env []string, failing ...string) {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), program)
	cmd.Dir = r.TempDir()
	cmd.Env = append(env, "OCI_REGISTRY="+r.addr, "OCI_TLS=disabled", "OCI_USERNAME="+r.user, "OCI_PASSWORD="+r.password, "OCI_VERSION=1.1")
	out, _ := cmd.CombinedOutput() // it fails where a case fails; what it says counts
	var failed []string
	passed := 0
	for _, m := range regexp.MustCompile(`(?m)^ *OCI Conformance Test/(.*): (Pass|FAIL|Error)$`).FindAllStringSubmatch(string(out), -1) {
		if m[2] == "Pass" {
			passed++
			continue
		}
		// A case comes after those that it is part of.
		failed = slices.DeleteFunc(failed, func(f string) bool { return strings.HasPrefix(m[1], f+"/") })
		failed = append(failed, m[1])
	}
	slices.Sort(failed)
	if passed < 10 || !slices.Equal(failed, failing) {
		r.Errorf("%d cases pass; these fail: %q, want exactly %q\n%s", passed, failed, failing, out)
	}
	r.Logf("%d cases pass, %d fail as they should", passed, len(failed))
}
