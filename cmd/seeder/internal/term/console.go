package term

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/acarl005/stripansi"
	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
)

// console puts the frames of mpb on a terminal, each over the one before. Unlike
// mpb's own it asks for the size through a function, leaves the last line of the
// terminal free, so that a frame as high as the terminal does not scroll it, and
// counts the lines into which a terminal that has become narrower has broken what
// it shows.
type console struct {
	bytes.Buffer
	w    io.Writer
	size func() (width, height int)

	skip    atomic.Bool   // the next frame is not to be shown
	flushed chan struct{} // holds one while nobody has taken note of the last frame
	drawn   []int         // width of each line of the last frame
}

func newConsole(w io.Writer, size func() (width, height int)) *console {
	return &console{w: w, size: size, flushed: make(chan struct{}, 1)}
}

var _ mpb.ConsoleWriter = (*console)(nil)

// IsTerminal implements mpb.ConsoleWriter.
func (c *console) IsTerminal() bool { return true }

// GetTermSize implements mpb.ConsoleWriter: the room for a frame.
func (c *console) GetTermSize() (width, height int, err error) {
	width, height = c.size()
	return width, max(height-1, 1), nil
}

// Flush implements mpb.ConsoleWriter: it shows the frame that was written.
func (c *console) Flush(int) error {
	defer func() {
		c.Reset()
		select {
		case c.flushed <- struct{}{}:
		default:
		}
	}()
	if c.skip.CompareAndSwap(true, false) {
		return nil
	}
	width, height := c.size()
	up := 0
	for _, w := range c.drawn {
		up += max(1, (w+width-1)/max(width, 1))
	}
	var out strings.Builder
	if up = min(up, height-1); up > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r\x1b[J", up)
	}
	c.drawn = c.drawn[:0]
	for line := range strings.Lines(c.String()) {
		line = strings.TrimRight(line, " \n")
		c.drawn = append(c.drawn, runewidth.StringWidth(stripansi.Strip(line)))
		out.WriteString(line + "\n")
	}
	_, err := io.WriteString(c.w, out.String())
	return err
}
