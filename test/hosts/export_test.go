package hosts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

// TestExportToAnotherCluster: a build goes to a cluster without a connection in a file; of
// the next one only what changed does. A cluster that has not the earlier build is told
// which blobs are missing, and nothing of it is left there; other tools read the whole
// archive, and refuse the other one.
func TestExportToAnotherCluster(t *testing.T) {
	from := harness.NewCluster(t, harness.Newest, 1, "")
	first, second := builtTwice(t, true)
	a := from.Hosts[0]
	a.Ctr("images", "import", first.DockerArchive(t, from.Dir))
	dir := t.TempDir()
	whole, changes := filepath.Join(dir, "whole.tar"), filepath.Join(dir, "changes.tar")
	t.Log(a.Run("export", harness.ShortName, "-o", whole)) // it is not announced there
	a.Run("announce", harness.ShortName)
	before := a.Target(harness.FullName).String()
	a.Ctr("images", "import", second.DockerArchive(t, from.Dir))
	a.Run("announce", harness.ShortName) // the daemon keeps the earlier build
	out := a.Run("export", harness.ShortName, "--since", harness.ShortName+"@"+before, "-o", changes)
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	t.Logf("the first build whole in %d bytes; %s in %d bytes", size(whole), out, size(changes))
	if size(changes) > size(whole)/10 || !strings.Contains(out, "as the difference") {
		t.Errorf("what changed takes %d bytes of %d: %s", size(changes), size(whole), out)
	}
	kept := digest.Digest(before)
	wantLeases(a, kept)

	// Neither seeder nor containerd takes what changed where the earlier build is not.
	alone := harness.NewCluster(t, harness.Newest, 1, "").Hosts[0]
	err := alone.Try(nil, "announce", "--from", changes)
	if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), harness.FullName+"@"+before) || !strings.Contains(err.Error(), "announce that build here first") {
		t.Errorf("without the earlier build: %v", err)
	}
	wantLeases(alone)
	if blobs := strings.TrimSpace(alone.Ctr("content", "ls", "-q")); blobs != "" {
		t.Errorf("blobs are left: %s", blobs)
	}
	ctr, err := alone.CtrCmd("images", "import", changes).CombinedOutput()
	if err == nil || !strings.Contains(string(ctr), "unsupported OCI version seeder-delta-1, which only seeder reads: seeder announce --from FILE") {
		t.Errorf("ctr images import: %v\n%s", err, ctr)
	}
	t.Logf("ctr images import says: %s", ctr)
	skopeo, err := alone.In(t.Context(), "skopeo", "inspect", "oci-archive:"+changes).CombinedOutput()
	if err == nil {
		t.Errorf("skopeo takes it:\n%s", skopeo)
	}
	t.Logf("skopeo inspect says: %s", skopeo)
	if images := alone.Ctr("images", "ls", "-q"); images != "" {
		t.Errorf("there are images: %s", images)
	}
	// The whole archive is an ordinary one.
	skopeo, err = alone.In(t.Context(), "skopeo", "inspect", "oci-archive:"+whole).CombinedOutput()
	if err != nil || !strings.Contains(string(skopeo), `"Digest": "`+before+`"`) {
		t.Errorf("skopeo inspect: %v\n%s", err, skopeo)
	}
	alone.Ctr("images", "import", whole)
	if got := alone.Target(harness.FullName).String(); got != before {
		t.Errorf("ctr images import named %q, want %s", got, before)
	}

	// A cluster that has the earlier build, of which one host takes the file.
	to := harness.NewCluster(t, harness.Newest, 2, "")
	b, c := to.Hosts[0], to.Hosts[1]
	b.Run("announce", "--from", whole)
	for _, h := range to.Hosts {
		if says := h.RunContainer(harness.FullName); says != "one" || h.Target(harness.FullName).String() != before {
			t.Errorf("%s runs a container that says %q", h.Name, says)
		}
	}
	t.Log(b.Run("announce", "--from", changes))
	for _, h := range to.Hosts {
		if says := h.RunContainer(harness.FullName); says != "two" || h.Target(harness.FullName) != a.Target(harness.FullName) {
			t.Errorf("%s has %s and runs a container that says %q", h.Name, h.Target(harness.FullName), says)
		}
	}
	wantLeases(b, kept)
	wantLeases(c, kept)

	// And back, by seeder push from a machine with ssh alone.
	back := filepath.Join(dir, "back.tar")
	a.Run("export", harness.ShortName+"@"+before, "--since", harness.ShortName, "-o", back)
	b.StartSSH(mayPush)
	said, err := push(laptop(to), harness.SSHUser+"@"+b.Address+" "+back)
	if err != nil || !strings.Contains(said, "is ready on 2 of 2 nodes") {
		t.Errorf("seeder push: %v\n%s", err, said)
	}
	if says := c.RunContainer(harness.FullName); says != "one" {
		t.Errorf("after the push a container says %q", says)
	}
}

// TestExportEnded: an export that is interrupted or killed leaves no file under its name,
// and nothing in containerd.
func TestExportEnded(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 1, "")
	a := n.Hosts[0]
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.ShortName, Says: "one", Payload: 64 << 20, Seed: 1})
	a.Ctr("images", "import", img.DockerArchive(t, n.Dir))
	dir := t.TempDir()
	out := a.Sh(harness.SeederBin(t) + " export " + harness.ShortName + " -o - 2>/dev/null | head -c 1000000 | wc -c")
	if strings.TrimSpace(out) != "1000000" {
		t.Errorf("a reader that goes away got %s bytes", out)
	}
	a.Sh("cd " + dir + " && { " + harness.SeederBin(t) + " export " + harness.ShortName + " -o x.tar & pid=$!; until ls -A | grep -q part; do kill -0 $pid || break; done; kill -INT $pid; wait $pid; true; }")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "part") {
			t.Errorf("%s is left", e.Name())
		}
	}
	wantLeases(a)
}
