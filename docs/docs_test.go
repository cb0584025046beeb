package docs

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// TestVector: a block is read with its long values, and what is wrong is refused.
func TestVector(t *testing.T) {
	t.Parallel()
	const page = "text\n```vector a\nkey one\nlong\n    aa\n    bb\n```\n```vector b\nk v\nk v\n```\n```vector c\nk v\n"
	v, err := vector(page, "a")
	if err != nil || v["key"] != "one" || v["long"] != "aabb" || len(v) != 2 {
		t.Errorf("%v %v", v, err)
	}
	for _, name := range []string{"b", "c", "d"} {
		if v, err := vector(page, name); err == nil {
			t.Errorf("vector %s: %v", name, v)
		}
	}
	if _, err := vector(page+page, "a"); err == nil {
		t.Error("two of one name were taken")
	}
}

// TestEveryVectorIsHeld: each vector of protocol.md is read by a test of a package.
func TestEveryVectorIsHeld(t *testing.T) {
	t.Parallel()
	var tests []byte
	for _, root := range []string{"../p2p", "../store"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Base(path) != "vectors_test.go" {
				return err
			}
			b, err := os.ReadFile(path)
			tests = append(tests, b...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	names := regexp.MustCompile("(?m)^```vector (.+)$").FindAllStringSubmatch(protocol, -1)
	if len(names) < 10 {
		t.Fatalf("%d vectors in protocol.md", len(names))
	}
	for _, m := range names {
		name := strings.TrimPrefix(m[1], "summary-of-") // with what they sum up
		if !bytes.Contains(tests, []byte(`"`+name+`"`)) {
			t.Errorf("no vectors_test.go reads the vector %s", m[1])
		}
	}
}

var pages = []string{"../README.md", "../README.ko.md", "../CONTRIBUTING.md", "index.md", "design.md", "security.md", "reliability.md", "benchmarks.md", "protocol.md", "operations.md", "rollout.md", "push.md", "compatibility.md", "metrics.md"}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	fence   = regexp.MustCompile("(?ms)^```([a-z]*)[^\n]*\n(.*?)^```$")
	heading = regexp.MustCompile(`(?m)^(#+) (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)|(?m)^\[[^\]]+\]: (\S+)$`)
	anchor  = regexp.MustCompile(`<a id="([^"]+)">`)
)

// links are the addresses of a page, in order.
func links(page string) []string {
	var out []string
	for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		out = append(out, m[1]+m[2])
	}
	return out
}

// anchors are what links may point to within a page.
func anchors(page string) []string {
	var out []string
	page = fence.ReplaceAllString(page, "")
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		out = append(out, slug(m[2]))
	}
	for _, m := range anchor.FindAllStringSubmatch(page, -1) {
		out = append(out, m[1])
	}
	return out
}

// slug is what the usual viewers make of a heading.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// TestLinks: what a page points to in this repository is there.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, page := range pages {
		for _, to := range links(read(t, page)) {
			if strings.Contains(to, "://") {
				continue
			}
			path, fragment, _ := strings.Cut(to, "#")
			target := filepath.Join(filepath.Dir(page), path)
			if path == "" {
				target = page
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s: %v", page, to, err)
			} else if fragment != "" && !slices.Contains(anchors(read(t, target)), fragment) {
				t.Errorf("%s: %s: no such heading", page, to)
			}
		}
	}
}

// TestIndex: index.md leads to each page once.
func TestIndex(t *testing.T) {
	index := read(t, "index.md")
	all, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range all {
		if n := strings.Count(index, "]("+page+")"); page != "index.md" && n != 1 {
			t.Errorf("%s is %d times in index.md, want once", page, n)
		}
	}
}

// TestTranslation: README.ko.md has the headings, tables, commands and links of
// README.md.
func TestTranslation(t *testing.T) {
	t.Parallel()
	en, ko := outline(read(t, "../README.md")), outline(read(t, "../README.ko.md"))
	for i := range max(len(en), len(ko)) {
		if i >= len(en) || i >= len(ko) || en[i] != ko[i] {
			t.Fatalf("from here on they differ:\nREADME.md    %q\nREADME.ko.md %q", en[i:min(i+3, len(en))], ko[i:min(i+3, len(ko))])
		}
	}
	enLinks, koLinks := links(read(t, "../README.md")), links(read(t, "../README.ko.md"))
	if len(enLinks) == 0 || enLinks[0] != "README.ko.md" || koLinks[0] != "README.md" {
		t.Fatalf("they do not point to each other first: %q, %q", enLinks[:1], koLinks[:1])
	}
	slices.Sort(enLinks[1:])
	slices.Sort(koLinks[1:])
	if !slices.Equal(enLinks[1:], koLinks[1:]) {
		t.Errorf("links of README.md\n%q\nand of README.ko.md\n%q", enLinks[1:], koLinks[1:])
	}
}

// outline is what of a page has the same form in each language: the levels of its
// headings, rows of tables, list items, and the commands in its blocks.
func outline(page string) []string {
	var out []string
	in := false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			in = !in
			out = append(out, line)
		case in:
			if command, _, _ := strings.Cut(line, "  #"); command != "" {
				out = append(out, strings.TrimSpace(command))
			}
		case strings.HasPrefix(line, "#"):
			level, _, _ := strings.Cut(line, " ")
			out = append(out, "heading "+level)
		case strings.HasPrefix(line, "|"):
			out = append(out, fmt.Sprintf("row of %d cells", strings.Count(line, "|")-1))
		case strings.HasPrefix(line, "- "):
			out = append(out, "item")
		}
	}
	return out
}

// TestTerminalPicture: what README.md shows of `announce` on a terminal is a part of
// what the tests of internal/show hold it to print.
func TestTerminalPicture(t *testing.T) {
	t.Parallel()
	golden := read(t, "../cmd/seeder/internal/show/testdata/golden/live-3-100.txt")
	for _, block := range fence.FindAllStringSubmatch(read(t, "../README.md"), -1) {
		if block[1] != "text" || !strings.Contains(block[2], "ready on") {
			continue
		}
		if !strings.Contains(golden, block[2]) {
			t.Errorf("README.md shows\n%s\nand live-3-100.txt has\n%s", block[2], golden)
		}
		return
	}
	t.Error("README.md shows no picture of announce")
}
