//go:build unix

package term

import (
	"os"

	"golang.org/x/sys/unix"
)

// size is that of the terminal f; ok is false where it is none.
func size(f *os.File) (width, height int, ok bool) {
	s, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	return int(s.Col), int(s.Row), true
}

func isTerminal(f *os.File) bool {
	_, _, ok := size(f)
	return ok
}
