package main

import (
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"

	"seeder/cmd/seeder/internal/cli"
)

// terminal is what is known of where text goes. The zero value is a pipe.
type terminal struct {
	live          bool // lines can be drawn over
	colour        bool
	width, height int // 0: no limit
}

func terminalOf(env *cli.Env, w io.Writer) terminal {
	f, ok := w.(*os.File)
	if !ok {
		return terminal{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return terminal{}
	}
	term, _ := env.LookupEnv("TERM")
	noColour, _ := env.LookupEnv("NO_COLOR")
	t := terminal{live: term != "dumb" && term != "", width: int(size.Col), height: int(size.Row)}
	t.colour = t.live && noColour == "" // https://no-color.org: set, and not empty
	return t
}

// isTerminal reports whether a stream is one that somebody sits at.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

const (
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	faint  = "\x1b[2m"
	plain  = "\x1b[0m"
)

func (t terminal) paint(colour, s string) string {
	if !t.colour || colour == "" {
		return s
	}
	return colour + s + plain
}

// cut shortens s to the width of the terminal. s has no colour in it.
func (t terminal) cut(s string) string {
	if t.width < 2 || runewidth.StringWidth(s) <= t.width-1 {
		return s
	}
	return runewidth.Truncate(s, t.width-1, "…")
}

// clean makes text of another node safe for a terminal: names, versions and
// reasons come from whoever has the cluster's secret. What cannot be seen goes,
// also what turns the direction of the text.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
