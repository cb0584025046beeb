package boot

import (
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"seeder/test/harness"
)

// released is what systemd/release.sh leaves of one version for this machine.
type released struct {
	t       *testing.T
	dir     string
	version string
	commit  string
	keys    string // GNUPGHOME with the key that signed it
}

// makeRelease makes the release that a maintainer would make of this tree, signed by
// a key of its own.
func makeRelease(t *testing.T, version string) *released {
	t.Helper()
	from := builtFrom(t)
	tree := copyTree(t, from)
	from.version = "v" + version
	r := &released{t: t, dir: filepath.Join(tree, "bin", "release"), version: version, commit: from.commit, keys: t.TempDir()}
	if err := os.Chmod(r.keys, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the agent that gpg started
		_ = exec.CommandContext(context.WithoutCancel(t.Context()), "gpgconf", "--homedir", r.keys, "--kill", "all").Run()
	})
	const key = "seeder tests <tests@seeder.invalid>"
	r.command(tree, "gpg", "--batch", "--passphrase", "", "--quick-generate-key", key, "ed25519", "sign", "never")
	cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "systemd", "release.sh"), "-trimpath", "-ldflags", from.ldflags())
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "VERSION=v"+version, "OUT="+r.dir, "ARCHES=amd64", "SOURCE_DATE_EPOCH="+from.epoch, "SIGNING_KEY=tests@seeder.invalid", "GNUPGHOME="+r.keys)
	harness.Run(t, cmd)
	return r
}

// command runs a program in dir with the release's keys.
func (r *released) command(dir, name string, args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GNUPGHOME="+r.keys)
	return harness.Run(r.t, cmd)
}

// check looks at the release as somebody would who downloaded it.
func (r *released) check() {
	r.t.Helper()
	r.command(r.dir, "sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	r.command(r.dir, "gpg", "--verify", "SHA256SUMS.asc", "SHA256SUMS")
	sums, err := os.ReadFile(filepath.Join(r.dir, "SHA256SUMS"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, want := range []string{"_amd64.deb", ".x86_64.rpm", "-linux-amd64.tar.gz", ".spdx.json", "apt/Packages", "apt/Release"} {
		if !strings.Contains(string(sums), want) {
			r.t.Errorf("SHA256SUMS has no %s:\n%s", want, sums)
		}
	}
	r.checkTarball()
	r.checkSBOM()
}

// checkTarball: what is in it is one directory, the program needs no library, and the
// script in it installs.
func (r *released) checkTarball() {
	r.t.Helper()
	name, dir := fmt.Sprintf("seeder-%s-linux-amd64", r.version), r.t.TempDir()
	r.command(dir, "tar", "-xzf", filepath.Join(r.dir, name+".tar.gz"))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != name {
		r.t.Fatalf("the tarball has %v at its top (%v), want %s alone", entries, err, name)
	}
	program, err := elf.Open(filepath.Join(dir, name, "bin", "seeder"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer program.Close()
	if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) != 0 {
		r.t.Errorf("the program in the tarball needs %v (%v), want a static one", libraries, err)
	}
	root := r.t.TempDir()
	cmd := exec.CommandContext(r.t.Context(), filepath.Join(dir, name, "systemd", "install.sh"), "install")
	cmd.Env = append(os.Environ(), "DESTDIR="+root)
	harness.Run(r.t, cmd)
	if out := harness.Run(r.t, exec.CommandContext(r.t.Context(), filepath.Join(root, "usr/local/bin/seeder"), "version")); !strings.HasPrefix(out, "seeder v"+r.version+" ") || !strings.HasSuffix(out, ", commit "+r.commit+"\n") {
		r.t.Errorf("the installed program is %q", out)
	}
}

// checkSBOM: the modules that the project cannot be without are in the list, each with
// a version.
func (r *released) checkSBOM() {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "seeder-"+r.version+".spdx.json"))
	if err != nil {
		r.t.Fatal(err)
	}
	var doc struct {
		SPDXVersion string
		Packages    []struct{ Name, VersionInfo, LicenseDeclared string }
	}
	if err := json.Unmarshal(b, &doc); err != nil || doc.SPDXVersion != "SPDX-2.3" {
		r.t.Fatalf("the SBOM is of version %q: %v", doc.SPDXVersion, err)
	}
	var names []string
	for _, p := range doc.Packages {
		if names = append(names, p.Name); p.VersionInfo == "" {
			r.t.Errorf("%s has no version in the SBOM", p.Name)
		}
	}
	for _, want := range []string{"seeder", "stdlib", "github.com/hashicorp/memberlist", "github.com/containerd/containerd/v2", "github.com/klauspost/compress"} {
		if !slices.Contains(names, want) {
			r.t.Errorf("the SBOM lacks %s; it has %q", want, names)
		}
	}
}

// installByApt installs the release on a machine the way its documentation says, and
// checks that apt refuses a repository that was changed after it was signed.
func installByApt(m *harness.Machine, r *released) {
	m.T.Helper()
	repository := filepath.Join(m.Dir, "rancher", "apt")
	harness.Run(m.T, exec.CommandContext(m.T.Context(), "cp", "-R", filepath.Join(r.dir, "apt"), repository))
	key, err := os.ReadFile(filepath.Join(r.dir, "seeder.asc"))
	if err != nil {
		m.T.Fatal(err)
	}
	m.Op("mkdir -p /etc/apt/keyrings; rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*") // this machine's own are out of reach
	m.Write("/etc/apt/keyrings/seeder.asc", string(key), 0o644)
	m.Write("/etc/apt/sources.list.d/seeder.list", "deb [signed-by=/etc/apt/keyrings/seeder.asc] file:/var/lib/rancher/apt ./\n", 0o644)
	m.Op("cp -R /var/lib/rancher/apt /root/signed && sed -i s/Label:.seeder/Label:.else/ /var/lib/rancher/apt/InRelease /var/lib/rancher/apt/Release")
	if out, err := m.TryOp("apt-get update -o APT::Update::Error-Mode=any 2>&1"); err == nil {
		m.T.Errorf("apt takes a repository that was changed: %s", out)
	}
	m.Op("rm -rf /var/lib/rancher/apt && cp -R /root/signed /var/lib/rancher/apt && apt-get update -qq -o APT::Update::Error-Mode=any && apt-get install -qq -y seeder")
	if out := m.Op("dpkg-query -W -f '${Version}' seeder"); out != r.version+"-1" {
		m.T.Errorf("apt has installed version %q, want %s-1", out, r.version)
	}
	m.Op("rm -rf /etc/apt/keyrings/seeder.asc /etc/apt/sources.list.d/seeder.list /var/lib/rancher/apt /root/signed")
}
