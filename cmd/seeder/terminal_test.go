package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

// TestErrorsCannotWriteOnATerminal: what an archive, an argument or another program says is in an
// error as text that prints.
func TestErrorsCannotWriteOnATerminal(t *testing.T) {
	t.Parallel()
	var errs bytes.Buffer
	run(t.Context(), []string{"\x1b]0;pwned\x07"}, strings.NewReader(""), &bytes.Buffer{}, &errs)
	run(t.Context(), []string{"config", "check", "--config", "\x1b[2J\u202e"}, strings.NewReader(""), &bytes.Buffer{}, &errs)
	for line := range strings.SplitSeq(errs.String(), "\n") {
		if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("an error writes on the terminal: %q", line)
		}
	}
	if !strings.Contains(errs.String(), "open ?[2J?") {
		t.Errorf("the errors do not show what was said: %q", errs.String())
	}
}
