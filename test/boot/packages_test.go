package boot

import (
	"bytes"
	"crypto/sha256"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"seeder/test/harness"
)

// packageFiles are the packages of one version for this machine.
type packageFiles struct{ deb, rpm string }

// builtPackages are those that `make package` has left in dir, for an architecture
// as Debian and as rpm call it.
func builtPackages(t *testing.T, dir, deb, rpm string) packageFiles {
	t.Helper()
	var out packageFiles
	for pattern, to := range map[string]*string{"*_" + deb + ".deb": &out.deb, "*." + rpm + ".rpm": &out.rpm} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%q in %s: %v, want one package; `make clean package` makes them", found, dir, err)
		}
		*to = found[0]
	}
	return out
}

// sources are what packages are made of.
type sources struct{ version, epoch, commit string }

// builtFrom is what those of `make package` are made of.
func builtFrom(t *testing.T) sources {
	t.Helper()
	b, err := os.ReadFile("../../bin/packages/built-from")
	f := strings.Fields(string(b))
	if err != nil || len(f) != 3 {
		t.Fatalf("%v, %q in bin/packages/built-from; `make package` in a checkout writes the version, the time and the commit", err, b)
	}
	return sources{f[0], f[1], f[2]}
}

// copyTree copies what packages are made of to a directory that no other user could read:
// the commit, whatever is checked out by now, or uncommitted changes to it.
func copyTree(t *testing.T, from sources) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "elsewhere")
	sh := func(script string) {
		t.Helper()
		harness.Run(t, exec.CommandContext(t.Context(), "sh", "-c", "umask 077 && mkdir -p "+dir+"/bin && "+script))
	}
	if !strings.HasSuffix(from.version, "-dirty") {
		sh("git -C ../.. archive " + from.commit + " | tar -x --no-same-permissions -C " + dir)
	} else {
		if now := strings.TrimSpace(harness.Run(t, exec.CommandContext(t.Context(), "git", "rev-parse", "HEAD"))); now != from.commit {
			t.Fatalf("the packages are %s with changes, and %s is checked out: run `make package` again", from.commit, now)
		}
		sh("cd ../.. && mkdir -p " + dir + "/test/tools && cp -R --no-preserve=all test/tools/sbom " + dir + "/test/tools && " +
			"cp -R --no-preserve=all cmd configs docs internal p2p store systemd go.mod go.sum LICENSE README*.md " + dir)
	}
	sh("chmod -R u+x " + dir + "/systemd && cp -R ../../bin/share ../../bin/nfpm " + dir + "/bin")
	return dir
}

// ldflags are those of `make` for a version of the sources.
func (s sources) ldflags() string {
	const at = " -X seeder/cmd/seeder/internal/cli."
	return "-s -w" + at + "release=" + s.version + at + "commit=" + s.commit
}

// packagesOf makes packages of a tree.
func packagesOf(t *testing.T, dir string, from sources, arches string) string {
	t.Helper()
	out := filepath.Join(dir, "bin", "packages")
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "systemd", "package.sh"), "-trimpath", "-ldflags", from.ldflags())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VERSION="+from.version, "OUT="+out, "ARCHES="+arches, "SOURCE_DATE_EPOCH="+from.epoch, "TZ=Pacific/Chatham", "LC_ALL=C")
	harness.Run(t, cmd)
	return out
}

// TestPackagesAreReproducible: the same sources in another directory, another umask,
// time zone and time make the same bytes.
func TestPackagesAreReproducible(t *testing.T) {
	harness.NeedRoot(t) // `make test` has built them
	from := builtFrom(t)
	again := packagesOf(t, copyTree(t, from), from, "amd64 arm64")
	for _, arch := range [][2]string{{"amd64", "x86_64"}, {"arm64", "aarch64"}} {
		a, b := builtPackages(t, "../../bin/packages", arch[0], arch[1]), builtPackages(t, again, arch[0], arch[1])
		for _, pair := range [][2]string{{a.deb, b.deb}, {a.rpm, b.rpm}} {
			if filepath.Base(pair[0]) != filepath.Base(pair[1]) {
				t.Errorf("%s is called %s when it is made again", pair[0], filepath.Base(pair[1]))
			}
			if sumOf(t, pair[0]) != sumOf(t, pair[1]) {
				t.Errorf("%s differs when it is made again", filepath.Base(pair[0]))
			}
		}
	}
}

func sumOf(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// TestPackageContents: both kinds of packages hold the same, of root, and the
// programs of the architecture that they name.
func TestPackageContents(t *testing.T) {
	harness.NeedRoot(t)                                       // `make test` has built them
	machines := map[string]byte{"amd64": 0x3e, "arm64": 0xb7} // e_machine of ELF
	for deb, rpm := range map[string]string{"amd64": "x86_64", "arm64": "aarch64"} {
		p := builtPackages(t, "../../bin/packages", deb, rpm)
		for _, line := range strings.Split(strings.TrimSpace(harness.Run(t, exec.CommandContext(t.Context(), "dpkg-deb", "-c", p.deb))), "\n") {
			if f := strings.Fields(line); f[1] != "root/root" || f[0][5] == 'w' || f[0][8] == 'w' {
				t.Errorf("%s: %s", deb, line)
			}
		}
		dir := t.TempDir()
		harness.Run(t, exec.CommandContext(t.Context(), "dpkg-deb", "-x", p.deb, dir))
		var inDeb []string
		for _, f := range filesIn(t, dir) {
			inDeb = append(inDeb, strings.Replace("/"+f, "/zsh/vendor-completions/", "/zsh/site-functions/", 1))
		}
		inRPM := strings.Fields(harness.Run(t, exec.CommandContext(t.Context(), "rpm", "-qp", "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]", p.rpm)))
		var files []string
		for i := 0; i+1 < len(inRPM); i += 2 {
			if inRPM[i][0] == '-' {
				files = append(files, inRPM[i+1])
			}
		}
		slices.Sort(inDeb)
		slices.Sort(files)
		if !slices.Equal(inDeb, files) {
			t.Errorf("%s: the .deb has %q, the .rpm %q", deb, inDeb, files)
		}
		for from, to := range map[string]string{"../../bin/share": "/usr/share/", "../../configs": "/usr/share/seeder/", "../../docs": "/usr/share/doc/seeder/"} {
			for _, f := range filesIn(t, from) {
				if strings.HasSuffix(f, ".go") { // the tests of the docs
					continue
				}
				if f = to + f; !slices.Contains(inDeb, f) && !slices.Contains(inDeb, f+".gz") && !strings.HasSuffix(f, ".jsonl") {
					t.Errorf("%s: no %s", deb, f)
				}
			}
		}
		for _, want := range []string{"/usr/bin/seeder", "/usr/lib/systemd/system/seeder.service", "/etc/seeder/seeder.yaml", "/usr/share/doc/seeder/copyright",
			"/usr/share/bash-completion/completions/seeder", "/usr/share/zsh/site-functions/_seeder", "/usr/share/fish/vendor_completions.d/seeder.fish", "/usr/share/seeder/seeder.yaml"} {
			if !slices.Contains(inDeb, want) {
				t.Errorf("%s: no %s", deb, want)
			}
		}
		unit, err := os.ReadFile(filepath.Join(dir, "usr/lib/systemd/system/seeder.service"))
		if err != nil || !bytes.Contains(unit, []byte("\nExecStart=/usr/bin/seeder daemon\n")) || bytes.Contains(unit, []byte("/usr/local")) {
			t.Errorf("%s: %v, the unit is\n%s", deb, err, unit)
		}
		program, err := os.ReadFile(filepath.Join(dir, "usr/bin/seeder"))
		if err != nil || program[18] != machines[deb] {
			t.Errorf("%s: %v, the program is for machine %#x", deb, err, program[18])
		}
		if out := harness.Run(t, exec.CommandContext(t.Context(), "rpm", "-qp", "--configfiles", p.rpm)); out != "/etc/seeder/seeder.yaml\n" {
			t.Errorf("%s: configuration files of the .rpm: %q", rpm, out)
		}
	}
}

// filesIn are the files below dir, not the directories.
func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path) // path is below dir
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestMakeInstall: make install installs what the packages have, make uninstall leaves
// nothing of it but a configuration that somebody has edited.
func TestMakeInstall(t *testing.T) {
	harness.NeedRoot(t) // `make test` has built them
	makeIn := func(target, dest string) {
		t.Helper()
		harness.Run(t, exec.CommandContext(t.Context(), "make", "-C", "../..", "-o", "build", "-o", "man", target, "DESTDIR="+dest))
	}
	dest := t.TempDir()
	makeIn("install", dest)
	files := filesIn(t, dest)
	for _, want := range []string{"usr/local/bin/seeder", "usr/local/lib/systemd/system/seeder.service", "etc/seeder/seeder.yaml", "usr/local/share/doc/seeder/README.md"} {
		if !slices.Contains(files, want) {
			t.Errorf("no %s in %q", want, files)
		}
	}
	own, err := os.ReadFile("../../systemd/seeder.service")
	unit, err2 := os.ReadFile(filepath.Join(dest, "usr/local/lib/systemd/system/seeder.service"))
	if err != nil || err2 != nil || !bytes.Equal(own, unit) {
		t.Errorf("%v, %v: the unit for /usr/local is not the one of the sources:\n%s", err, err2, unit)
	}
	makeIn("install", dest) // as for a newer version
	makeIn("uninstall", dest)
	if left := filesIn(t, dest); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if entries, _ := os.ReadDir(filepath.Join(dest, "usr/local")); len(entries) > 0 {
		t.Errorf("directories are left: %v", entries)
	}

	config := filepath.Join(dest, "etc/seeder/seeder.yaml")
	makeIn("install", dest)
	if err := os.WriteFile(config, []byte("log: {level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	makeIn("install", dest)
	makeIn("uninstall", dest)
	if b, err := os.ReadFile(config); err != nil || string(b) != "log: {level: debug}\n" {
		t.Errorf("the edited configuration: %v %q", err, b)
	}
}
