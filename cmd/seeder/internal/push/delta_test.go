package push

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/engines"
	"seeder/store/archive"
)

// TestDeltaArchive: an archive of what changed is recognized in a file and on standard
// input, and nothing of another archive on standard input is lost.
func TestDeltaArchive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	changes, other := archive.ContentsName+"\x00 and so on", strings.Repeat("another archive", 1000)
	file := func(name, text string) source {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return source{from: path}
	}
	a, b, stdin := file("a", changes), file("b", other), source{from: engines.FromStdin}
	for name, c := range map[string]struct {
		sources []source
		stdin   string
		want    string // what is sent as it is
		fails   string
	}{
		"a file":              {[]source{a}, "", changes, ""},
		"standard input":      {[]source{stdin}, changes, changes, ""},
		"another file":        {[]source{b}, "", "", ""},
		"another one there":   {[]source{stdin}, other, "", ""},
		"two files":           {[]source{b, a}, "", "", "push it by itself"},
		"no file":             {[]source{{from: filepath.Join(dir, "none")}}, "", "", ""},
		"an image of engines": {[]source{{from: engines.FromAuto, ref: "x"}}, "", "", ""},
		"an empty input":      {[]source{stdin}, "", "", ""},
	} {
		var f flags
		env, r, err := f.deltaArchive(&cli.Env{Stdin: strings.NewReader(c.stdin)}, c.sources)
		if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v, want %q", name, err, c.fails)
			continue
		}
		if err != nil {
			continue
		}
		got := ""
		if r != nil {
			p, err := io.ReadAll(r)
			if got = string(p); err != nil || r.Close() != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if p, err := io.ReadAll(env.Stdin); err != nil || string(p) != c.stdin {
			t.Errorf("%s: %d bytes are left on standard input, %v", name, len(p), err)
		}
		if got != c.want {
			t.Errorf("%s: %d bytes are sent as they are, want %d", name, len(got), len(c.want))
		}
	}
}
