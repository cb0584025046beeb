package term

import (
	"io"
	"strings"
	"testing"
)

// TestConsoleFollowsTheTerminal: a terminal that has become narrower shows lines that it
// broke into more.
func TestConsoleFollowsTheTerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	width, height := 100, 10
	c := newConsole(&out, func() (int, int) { return width, height })
	frame := func(text string) string {
		out.Reset()
		_, _ = io.WriteString(c, text)
		if err := c.Flush(0); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	long := Green + strings.Repeat("x", 90) + plain
	if got := frame(long + "\nshort\n"); got != long+"\nshort\n" {
		t.Errorf("first frame %q", got)
	}
	if got := frame(long + "\nshort\n"); !strings.HasPrefix(got, "\x1b[2A\r\x1b[J") {
		t.Errorf("second frame %q", got)
	}
	width = 40
	if got := frame("a\n"); !strings.HasPrefix(got, "\x1b[4A\r\x1b[J") {
		t.Errorf("on 40 columns 90 are three lines: %q", got)
	}
	frame(strings.Repeat("a\n", 9))
	height = 5
	if got := frame("a\n"); !strings.HasPrefix(got, "\x1b[4A\r\x1b[J") {
		t.Errorf("no more than the screen has: %q", got)
	}
	c.skip.Store(true)
	if got := frame("b\n"); got != "" {
		t.Errorf("skipped frame %q", got)
	}
	if w, h, err := c.GetTermSize(); w != 40 || h != 4 || err != nil {
		t.Error(w, h, err)
	}
}
