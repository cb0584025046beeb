package text

import (
	"strings"
	"testing"
	"unicode"
)

func TestClean(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"plain text", 20, "plain text"},
		{"größer 이미지", 40, "größer 이미지"},
		{"a\x1b]0;pwned\x07b", 40, "a?]0;pwned?b"},
		{"a\nb\tc", 40, "a b c"},
		{"a\u202eb\u200bc\u0085d", 40, "a?b?c?d"},
		{"a\xffb", 40, "a?b"},
		{"12345", 3, "123…"},
		{"aé", 2, "a…"},
		{"이미지", 7, "이미…"},
		{"", 0, ""},
		{"x", 0, "…"},
	} {
		if got := Clean(c.in, c.limit); got != c.want {
			t.Errorf("Clean(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
		if got, want := Valid(c.in, c.limit), c.in == c.want; got != want {
			t.Errorf("Valid(%q, %d) = %v", c.in, c.limit, got)
		}
	}
	if got := Lines("a\nb\x1bc\n", 10); got != "a\nb?c\n" {
		t.Errorf("%q", got)
	}
}

// FuzzClean: what comes out prints, is within its bound, and comes out again as it is.
func FuzzClean(f *testing.F) {
	f.Add("a\x1b]0;x\x07", 4)
	f.Add("\xff\xfe이", 3)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(min(limit, 1<<10), 0)
		got := Clean(s, limit)
		if len(got) > limit+len("…") || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) || Clean(got, len(got)) != got {
			t.Errorf("%q gives %q", s, got)
		}
		if Valid(s, limit) != (got == s && len(s) <= limit) {
			t.Errorf("%q: valid %v, gives %q", s, Valid(s, limit), got)
		}
	})
}
