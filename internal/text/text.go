// Package text makes text that others wrote safe to show and to keep: of other nodes,
// of archives and images, of container engines.
//
// It owns the one rule of what may be shown, and which of several names a misspelt one may
// have meant. It never escapes for a format, as HTML
// or a terminal's table do.
//
// Invariant: what Clean returns and what Valid accepts cannot move a cursor, set a
// title, reorder what is around it, or begin a line.
package text

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean is s with a ? for each character that does not print (control characters, marks
// of direction, bytes that are not UTF-8) and a blank for white space, cut after at
// most limit bytes with an … added.
func Clean(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:limit]
		for n := 1; n < utf8.UTFMax && n <= len(s) && !utf8.ValidString(s[len(s)-n:]); n++ {
			if utf8.RuneStart(s[len(s)-n]) {
				s = s[:len(s)-n] // the beginning of a character that was cut
				break
			}
		}
	}
	if !isClean(s) {
		var b strings.Builder
		for _, r := range s {
			switch {
			case r == '\n', r == '\t', r == '\r':
				r = ' '
			case !unicode.IsPrint(r), r == utf8.RuneError:
				r = '?'
			}
			if b.Len()+utf8.RuneLen(r) > limit {
				cut = true
				break
			}
			b.WriteRune(r)
		}
		s = b.String()
	}
	if cut {
		s += "…"
	}
	return s
}

// Valid reports whether s has at most limit bytes, all of characters that print.
func Valid(s string, limit int) bool { return len(s) <= limit && isClean(s) }

func isClean(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0
}

// Lines cleans each line of s, which may have several.
func Lines(s string, limit int) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = Clean(l, limit)
	}
	return strings.Join(lines, "\n")
}
