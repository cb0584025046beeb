package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
)

var (
	docCode    = regexp.MustCompile("(?ms)^```(?:sh|yaml)?\n(.*?)^```$|`([^`\n]+)`")
	docCommand = regexp.MustCompile(`(?m)(?:^|\| |\$ )seeder ([a-z].*?)(?:  #.*|\||>|&&|;|$)`)
	docLabel   = regexp.MustCompile(`^(cluster CA|.*v1)$`) // of keys and signatures, see docs/protocol.md
	docTarget  = regexp.MustCompile(`(?m)^make ([a-z][-a-z]*)`)
	docKey     = regexp.MustCompile(`(?m)(?:^|[^-./\w])((?:gossip|transfer|containerd|images|api|http|log)\.[a-z_*]+)`)
)

// TestDocsNameWhatThereIs: the commands, flags, make targets and configuration keys in
// the documentation exist.
func TestDocsNameWhatThereIs(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md", "../../README.ko.md", "../../CONTRIBUTING.md")
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	a := &cli.Env{LookupEnv: func(string) (string, bool) { return "", false }, Environ: func() []string { return nil }}
	cfg, err := config.Load(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, s := range cfg.Settings {
		keys = append(keys, s.Key)
	}
	commands := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range docCode.FindAllStringSubmatch(string(b), -1) {
			code := m[1] + m[2]
			for _, c := range docCommand.FindAllStringSubmatch(code, -1) {
				if docLabel.MatchString(c[1]) {
					continue
				}
				commands++
				if problem := noSuch(a, strings.Fields(c[1])); problem != "" {
					t.Errorf("%s: seeder %s: %s", page, c[1], problem)
				}
			}
			for _, target := range docTarget.FindAllStringSubmatch(code, -1) {
				if !regexp.MustCompile(`(?m)^` + target[1] + `( [a-z -]+)?:`).Match(makefile) {
					t.Errorf("%s: make %s: no such target", page, target[1])
				}
			}
			for _, key := range docKey.FindAllStringSubmatch(code, -1) {
				pattern := strings.ReplaceAll(regexp.QuoteMeta(key[1]), `\*`, `[a-z_]+`)
				if !slices.ContainsFunc(keys, regexp.MustCompile("^"+pattern+"$").MatchString) {
					t.Errorf("%s: %s: no such key", page, key[1])
				}
			}
		}
	}
	if commands < 50 {
		t.Errorf("only %d commands found", commands)
	}
}

// noSuch says what of a command line there is not.
func noSuch(env *cli.Env, words []string) string {
	cmd, rest, err := rootCommand(env).Find(words)
	if err != nil || !cmd.HasParent() && words[0] != "help" {
		return "no such command"
	}
	for _, w := range rest {
		name, long := strings.CutPrefix(w, "--")
		name, _, _ = strings.Cut(name, "=")
		switch {
		case long && name != "help" && cmd.Flags().Lookup(name) == nil:
			return "no such flag: " + w
		case !long && len(w) == 2 && w[0] == '-' && w != "-h" && cmd.Flags().ShorthandLookup(w[1:]) == nil:
			return "no such flag: " + w
		}
	}
	return ""
}
