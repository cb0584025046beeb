package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityNamesTests: each test that security.md names is there, in the package that
// it names.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	there := map[string][]string{} // package directories by test
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
			there[string(m[1])] = append(there[string(m[1])], filepath.Base(filepath.Dir(path)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(?:([a-z0-9]+)\\.)?((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(read(t, "security.md"), -1)
	if len(named) < 10 {
		t.Fatalf("security.md names %d tests", len(named))
	}
	for _, m := range named {
		found := there[m[2]]
		if len(found) == 0 {
			t.Errorf("security.md names %s, which is not a test", m[2])
		}
		if m[1] != "" && !strings.Contains(" "+strings.Join(found, " ")+" ", " "+m[1]+" ") {
			t.Errorf("security.md has %s in %s, it is in %s", m[2], m[1], found)
		}
	}
}
