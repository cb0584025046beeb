package term

import (
	"errors"
	"fmt"
	"testing"
)

type goneWriter struct{}

func (goneWriter) Write([]byte) (int, error) { return 0, errors.New("gone") }

// A terminal that is gone ends the drawing, not the command.
func TestBoardOnATerminalThatIsGone(t *testing.T) {
	t.Parallel()
	b := NewBoard(goneWriter{}, func() Terminal { return Terminal{Live: true, Width: 80, Height: 24} })
	for i := range 5 {
		b.Show([]BoardRow{{Key: fmt.Sprint(i), Text: []Cell{{"x", ""}}}})
	}
	b.Close()
}
