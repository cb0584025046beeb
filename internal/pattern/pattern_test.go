package pattern

import (
	"slices"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]struct{ yes, no []string }{
		"*":                   {yes: []string{"docker.io/library/a:1", "ghcr.io/a/b:1"}},
		"docker.io/library/*": {yes: []string{"docker.io/library/a:1"}, no: []string{"docker.io/me/a:1", "ghcr.io/a:1"}},
		"app[ab]:*":           {yes: []string{"docker.io/library/appa:v1", "docker.io/library/appb:v1"}, no: []string{"docker.io/library/appc:v1", "ghcr.io/appa:1"}},
		"app[!ab]:*":          {yes: []string{"docker.io/library/appc:v1"}, no: []string{"docker.io/library/appa:v1"}},
		"app[a-c]?:v1":        {yes: []string{"docker.io/library/appbx:v1"}, no: []string{"docker.io/library/appb:v1", "docker.io/library/appdx:v1"}},
		"app?:v1":             {yes: []string{"docker.io/library/appa:v1"}, no: []string{"docker.io/library/app:v1", "docker.io/library/appab:v1"}},
		"me/app:v1":           {yes: []string{"docker.io/me/app:v1"}, no: []string{"ghcr.io/me/app:v1"}},
		"ghcr.io/*/b:*":       {yes: []string{"ghcr.io/a/b:1", "ghcr.io/a/x/b:1"}, no: []string{"ghcr.io/b:1"}},
		"*:v1.2":              {yes: []string{"docker.io/library/a:v1.2"}, no: []string{"docker.io/library/a:v1x2"}},
		"*@sha256:*":          {yes: []string{"docker.io/library/a@sha256:" + strings.Repeat("b", 64)}, no: []string{"docker.io/library/a:v1"}},
		`a\pp:*`:              {yes: []string{"docker.io/library/app:v1"}},
		"*:DEV-*":             {yes: []string{"docker.io/library/app:DEV-1"}},
		"localhost:5000/*":    {yes: []string{"localhost:5000/a:1"}, no: []string{"docker.io/library/a:1"}},
	} {
		p, err := Parse(pattern)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		for _, ref := range want.yes {
			if !p.Match(ref) {
				t.Errorf("%q does not match %s", pattern, ref)
			}
		}
		for _, ref := range want.no {
			if p.Match(ref) {
				t.Errorf("%q matches %s", pattern, ref)
			}
		}
	}
}

func TestRefusesWhatMatchesNothing(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "app", "App:*", "app:", "app[", "app[]:*", "app[ :*", "app[z-a]:*", "[A]pp:v1", "a b:*", "app:v1:v2", "app[\\]:*", `app:\`,
		"//*", "app:*/*x:", "é:*", strings.Repeat("a", 600), strings.Repeat("*", 100)} {
		if p, err := Parse(bad); err == nil {
			t.Errorf("%q is accepted as %v", bad, p)
		}
	}
	if _, err := Parse("app"); err == nil || !strings.Contains(err.Error(), `"app:*"`) {
		t.Errorf("an error without the fix: %v", err)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	l, err := ParseList([]string{"a:*", "b:*"})
	if err != nil || !l.Match("docker.io/library/b:1") || l.Match("docker.io/library/c:1") || !slices.Equal(l.Strings(), []string{"a:*", "b:*"}) {
		t.Errorf("%v %v", l, err)
	}
	if !List(nil).Match("docker.io/library/c:1") {
		t.Error("no patterns do not match everything")
	}
	if _, err := ParseList([]string{"a:*", "b"}); err == nil {
		t.Error("a bad pattern of a list is accepted")
	}
	if (Pattern{}).Match("") {
		t.Error("no pattern matches")
	}
}

// FuzzParse: no pattern panics, and one without wildcards that is accepted is a
// reference that it matches.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"*", "app[ab]:*", "app?:v1", `a\*`, "[!a]*:*", "docker.io/library/a:1"} {
		f.Add(s, "docker.io/library/a:1")
	}
	f.Fuzz(func(t *testing.T, s, ref string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		p.Match(ref)
		if !strings.ContainsAny(s, `*?[\`) {
			named, err := reference.ParseDockerRef(s)
			if err != nil || !p.Match(named.String()) {
				t.Errorf("%q is accepted and does not match itself: %v %v", s, named, err)
			}
		}
	})
}
