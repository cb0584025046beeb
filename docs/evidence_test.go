package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// testsThere are the directories of the packages that have a test, by its name.
func testsThere(t *testing.T) map[string][]string {
	t.Helper()
	there := map[string][]string{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(b, -1) {
			there[string(m[1])] = append(there[string(m[1])], strings.TrimPrefix(filepath.Dir(path), "../"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// TestSecurityNamesTests: each test that security.md names is there, in the package that
// it names.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	there := testsThere(t)
	named := regexp.MustCompile("`(?:([a-z0-9]+)\\.)?((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(read(t, "security.md"), -1)
	if len(named) < 10 {
		t.Fatalf("security.md names %d tests", len(named))
	}
	for _, m := range named {
		found := there[m[2]]
		if len(found) == 0 {
			t.Errorf("security.md names %s, which is not a test", m[2])
		}
		if m[1] != "" && !slices.ContainsFunc(found, func(dir string) bool { return filepath.Base(dir) == m[1] }) {
			t.Errorf("security.md has %s in %s, it is in %s", m[2], m[1], found)
		}
	}
}

// TestMakeRunsTests: the Makefile runs each test that needs hosts: with its package,
// or by its name, and then in the package where it is.
func TestMakeRunsTests(t *testing.T) {
	t.Parallel()
	there := testsThere(t)
	run := map[string]bool{} // packages, and "package test"
	named := regexp.MustCompile(`-run '\^(Test\w+)\$\$'`)
	for line := range strings.Lines(read(t, "../Makefile")) {
		for _, word := range strings.Fields(line) {
			dir, isPackage := strings.CutPrefix(word, "./")
			test := named.FindStringSubmatch(line)
			switch {
			case !isPackage || !strings.HasPrefix(dir, "test"):
			case test == nil:
				run[dir] = true
			case !slices.Contains(there[test[1]], dir):
				t.Errorf("the Makefile runs %s in %s, it is in %q", test[1], dir, there[test[1]])
			default:
				run[dir+" "+test[1]] = true
			}
		}
	}
	for test, dirs := range there {
		for _, dir := range dirs {
			if test != "TestMain" && strings.HasPrefix(dir, "test/") && dir != "test/ui" && !run[dir] && !run[dir+" "+test] { // a module of its own
				t.Errorf("the Makefile does not run %s of %s", test, dir)
			}
		}
	}
}
