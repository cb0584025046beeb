// Package term is what a terminal can do: colours, its width, tables, a board of rows
// that is drawn over, and figures for people.
//
// It owns how text is laid out. It never knows what the text is about: no type of a
// node or of an image is here.
//
// Invariant: text of other nodes reaches a terminal through Clean only, and a row is
// never wider than the terminal.
package term

import (
	"io"
	"os"

	"github.com/mattn/go-runewidth"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/text"
)

// Terminal is what is known of where text goes. The zero value is a pipe.
type Terminal struct {
	Live          bool // lines can be drawn over
	colour        bool
	Width, Height int // 0: no limit
}

// Of is the terminal behind w, by TERM and NO_COLOR of env; the zero value where w is
// none.
func Of(env *cli.Env, w io.Writer) Terminal {
	f, ok := w.(*os.File)
	if !ok {
		return Terminal{}
	}
	width, height, ok := size(f)
	if !ok {
		return Terminal{}
	}
	term, _ := env.LookupEnv("TERM")
	noColour, _ := env.LookupEnv("NO_COLOR")
	t := Terminal{Live: term != "dumb" && term != "", Width: width, Height: height}
	t.colour = t.Live && noColour == "" // https://no-color.org: set, and not empty
	return t
}

// IsTerminal reports whether a stream is one that somebody sits at.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	return isTerminal(f)
}

// The colours of cells and of Paint, as escape sequences of ECMA-48.
const (
	Green  = "\x1b[32m"
	Yellow = "\x1b[33m"
	Red    = "\x1b[31m"
	Faint  = "\x1b[2m"
	plain  = "\x1b[0m"
)

// Paint gives s a colour where the terminal has colours.
func (t Terminal) Paint(colour, s string) string {
	if !t.colour || colour == "" {
		return s
	}
	return colour + s + plain
}

// Cut shortens s to the width of the terminal. s has no colour in it.
func (t Terminal) Cut(s string) string {
	if t.Width < 2 || runewidth.StringWidth(s) <= t.Width-1 {
		return s
	}
	return runewidth.Truncate(s, t.Width-1, "…")
}

// Clean makes text of another node safe for a terminal: names, versions and
// reasons come from any holder of the cluster's secret. What cannot be seen goes,
// also what turns the direction of the text.
func Clean(s string) string {
	return text.Clean(s, len(s))
}
