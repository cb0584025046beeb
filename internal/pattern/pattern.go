// Package pattern matches image references against the patterns of the
// configuration (images.accept, images.auto).
//
// It owns the one language of such patterns: what a configuration check accepts
// is what the node goes by. It never looks anything up.
//
// In a pattern * stands for any run of characters, slashes included, ? for one, and
// [ab], [a-z] and [!a] for one of a set or one of none of it. A \ takes the next
// character as it is. docker.io/ and docker.io/library/ may be left out.
//
// Invariant: a pattern that Parse returns matches some reference.
package pattern

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

const (
	// maxBytes bounds a pattern; a reference has at most 512.
	maxBytes = 512
	// maxStars bounds the * of a pattern.
	maxStars = 16
)

// Pattern is one pattern. The zero value matches nothing.
type Pattern struct {
	text string
	re   *regexp.Regexp
}

// Parse reads a pattern. It refuses one that can match no reference: in upper case,
// without a tag.
func Parse(s string) (Pattern, error) {
	if s == "" || len(s) > maxBytes || strings.Count(s, "*") > maxStars {
		return Pattern{}, fmt.Errorf("invalid pattern %q: want 1 to %d bytes and at most %d *", s, maxBytes, maxStars)
	}
	tokens, err := split(s)
	if err != nil {
		return Pattern{}, fmt.Errorf("invalid pattern %q: %w", s, err)
	}
	var expr strings.Builder
	expr.WriteString(`(?s)\A(?:`)
	for _, t := range tokens {
		expr.WriteString(t.expr)
	}
	expr.WriteString(`)\z`)
	re, err := regexp.Compile(expr.String())
	if err != nil {
		return Pattern{}, fmt.Errorf("invalid pattern %q: want sets, e.g. [ab] or [a-z]", s)
	}
	p := Pattern{text: s, re: re}
	if !p.matchesSomething(tokens) {
		return Pattern{}, fmt.Errorf("pattern %q matches no image reference: %s", s, hint(s))
	}
	return p, nil
}

func hint(s string) string {
	repository := s[strings.LastIndexByte(s, '/')+1:]
	if !strings.ContainsAny(repository, ":*") {
		return fmt.Sprintf("references have a tag, e.g. %q", s+":*")
	}
	return `want e.g. "registry.example.com/team/*" or "app:v1"; repositories are lower case`
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// Match reports whether p matches a reference as CRI writes it.
func (p Pattern) Match(ref string) bool {
	if p.re == nil {
		return false
	}
	for _, prefix := range []string{"", "docker.io/", "docker.io/library/"} {
		if short, ok := strings.CutPrefix(ref, prefix); ok && p.re.MatchString(short) {
			return true
		}
	}
	return false
}

// token is a piece of a pattern: as a regular expression, and what it may stand for.
type token struct {
	expr   string
	stands []string
}

// split reads a pattern token by token.
func split(s string) ([]token, error) {
	var out []token
	for s != "" {
		c, size := s[:1], 1
		switch c {
		case "*":
			out = append(out, token{`.*`, stars})
		case "?":
			out = append(out, token{`.`, []string{"a", "/", ":", "."}})
		case "[":
			t, n, err := set(s)
			if err != nil {
				return nil, err
			}
			out, size = append(out, t), n
		case `\`:
			if len(s) < 2 {
				return nil, errors.New(`nothing follows the last \`)
			}
			c, size = s[1:2], 2
			fallthrough
		default:
			out = append(out, token{regexp.QuoteMeta(c), []string{c}})
		}
		s = s[size:]
	}
	return out, nil
}

// set reads [ab], [a-z], [!a] or [^a] at the beginning of s. Sets are of ASCII, as
// references are.
func set(s string) (token, int, error) {
	end := strings.IndexByte(s[1:], ']')
	if end < 0 {
		return token{}, 0, errors.New("a [ without its ]")
	}
	inner := s[1 : 1+end]
	body, not := strings.CutPrefix(inner, "!")
	if !not {
		body, not = strings.CutPrefix(inner, "^")
	}
	if body == "" || strings.ContainsAny(body, `[\^`) {
		return token{}, 0, errors.New("want sets, e.g. [ab] or [a-z]")
	}
	expr := "[" + body + "]"
	if not {
		expr = "[^" + body + "]"
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return token{}, 0, errors.New("want sets, e.g. [ab] or [a-z]")
	}
	t := token{expr: expr}
	for _, r := range "a0bcdefghijklmnopqrstuvwxyz123456789:./_-@ABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		if c := string(r); re.MatchString(c) {
			t.stands = append(t.stands, c)
		}
	}
	if t.stands == nil {
		return token{}, 0, fmt.Errorf("[%s] matches no character of a reference", inner)
	}
	t.stands = t.stands[:min(len(t.stands), 2)]
	return t, end + 2, nil
}

// stars are what a * is tried with.
var stars = []string{"", "a", "a:a", "a/a", ":a", "/a", "a/a:a", "@sha256:" + strings.Repeat("a", 64), strings.Repeat("a", 64)}

// maxTries bounds how many references are tried for one pattern.
const maxTries = 1024

// matchesSomething tries references that the pattern may match.
func (p Pattern) matchesSomething(tokens []token) bool {
	choice := make([]int, len(tokens))
	found := func() bool {
		var b strings.Builder
		for i, t := range tokens {
			b.WriteString(t.stands[choice[i]])
		}
		ref, err := reference.ParseDockerRef(b.String())
		return err == nil && p.Match(ref.String())
	}
	for n := range stars { // the same for each of them, where there are many
		for i, t := range tokens {
			choice[i] = min(n, len(t.stands)-1)
		}
		if found() {
			return true
		}
	}
	clear(choice)
	for range maxTries {
		if found() {
			return true
		}
		if !next(choice, tokens) {
			return false
		}
	}
	return false
}

// next counts choice up; false at the end.
func next(choice []int, tokens []token) bool {
	for i := len(choice) - 1; i >= 0; i-- {
		if choice[i]++; choice[i] < len(tokens[i].stands) {
			return true
		}
		choice[i] = 0
	}
	return false
}

// List is a list of patterns; an empty one matches everything.
type List []Pattern

// ParseList reads patterns.
func ParseList(list []string) (List, error) {
	var out List
	for _, s := range list {
		p, err := Parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Match reports whether one of the patterns matches, or there are none.
func (l List) Match(ref string) bool {
	return len(l) == 0 || slices.ContainsFunc(l, func(p Pattern) bool { return p.Match(ref) })
}

// Strings are the patterns as they were written.
func (l List) Strings() []string {
	var out []string
	for _, p := range l {
		out = append(out, p.text)
	}
	return out
}
