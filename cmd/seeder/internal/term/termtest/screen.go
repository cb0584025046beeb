// Package termtest is a terminal for tests: Screen remembers what a terminal would show,
// and the pseudo terminal of OpenPTY writes to one.
package termtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Screen is a terminal that remembers what it shows: lines, of which those from top on
// are its screen. It knows what this program sends: text, new lines, the cursor up, the
// rest of the screen cleared, colours. Anything else is in odd.
type Screen struct {
	mu            sync.Mutex
	Width, Height int
	lines         [][]rune
	row, col, top int
	esc           string // unfinished
	odd           []string
	raw           strings.Builder
	rest          []byte // of a rune that is not whole yet
}

// New returns an empty screen of so many columns and lines.
func New(width, height int) *Screen {
	return &Screen{Width: width, Height: height, lines: make([][]rune, 1)}
}

// Write implements io.Writer.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	s.rest = append(s.rest, p...)
	for utf8.FullRune(s.rest) {
		r, n := utf8.DecodeRune(s.rest)
		s.rest = s.rest[n:]
		switch {
		case s.esc != "":
			s.esc += string(r)
			if r != '[' && (r < '0' || r > '?') {
				s.control(s.esc)
				s.esc = ""
			}
		case r == '\x1b':
			s.esc = string(r)
		case r == '\r':
			s.col = 0
		case r == '\n':
			s.down()
			s.col = 0
		case r < ' ':
			s.odd = append(s.odd, strconv.QuoteRune(r))
		default:
			s.put(r)
		}
	}
	return len(p), nil
}

func (s *Screen) down() {
	s.row++
	if s.row == len(s.lines) {
		s.lines = append(s.lines, nil)
		s.top = max(s.top, len(s.lines)-s.Height)
	}
}

func (s *Screen) put(r rune) {
	if s.col == s.Width {
		s.down()
		s.col = 0
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
}

func (s *Screen) control(esc string) {
	n, _ := strconv.Atoi(strings.Trim(esc, "\x1b[AJm"))
	switch esc[len(esc)-1] {
	case 'A':
		s.row = max(s.row-max(n, 1), s.top) // what has scrolled away stays
	case 'J':
		s.lines[s.row] = s.lines[s.row][:min(s.col, len(s.lines[s.row]))]
		s.lines = s.lines[:s.row+1]
	case 'm':
	default:
		s.odd = append(s.odd, strconv.Quote(esc))
	}
}

// Resize gives the terminal another size: lines that are too long are broken.
func (s *Screen) Resize(width, height int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines [][]rune
	top := 0
	for i, line := range s.lines {
		if i == s.top {
			top = len(lines)
		}
		if i == s.row {
			s.row = len(lines) // the cursor stands in an empty line
		}
		for len(line) > width {
			lines, line = append(lines, line[:width:width]), line[width:]
		}
		lines = append(lines, line)
	}
	s.lines, s.Width, s.Height = lines, width, height
	s.top = max(top, len(lines)-height)
}

// Text is everything that the terminal shows and has scrolled away.
func (s *Screen) Text() string { return s.from(0) }

// Visible is what it shows.
func (s *Screen) Visible() string { return s.from(s.top) }

func (s *Screen) from(top int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, line := range s.lines[top:] {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// Sent is everything that was written to the terminal, with its control sequences.
func (s *Screen) Sent() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

// Check fails where the terminal got what it does not know, or is left in a state
// that a shell would not like.
func (s *Screen) Check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.odd) > 0 || s.esc != "" {
		t.Errorf("control sequences %v, unfinished %q", s.odd, s.esc)
	}
	if s.col != 0 || s.row != len(s.lines)-1 {
		t.Errorf("the cursor is left at column %d of line %d of %d", s.col, s.row, len(s.lines))
	}
}

// OpenPTY is a real terminal of the kernel, whose other end writes to screen. done is
// closed when all that was written until slave was closed has been shown.
func OpenPTY(t *testing.T, screen *Screen) (slave *os.File, resize func(width, height int), done chan struct{}) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	resize = func(width, height int) {
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
			t.Error(err)
		}
	}
	resize(screen.Width, screen.Height)
	done = make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if n > 0 {
				_, _ = screen.Write(buf[:n])
			}
			if err != nil { // EIO: the slave is closed
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		<-done
		master.Close()
	})
	return slave, resize, done
}
