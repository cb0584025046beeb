package term

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/mattn/go-runewidth"

	"seeder/internal/figure"
)

// Percent is 100 only when all is done.
func Percent(done, total int64) int64 {
	if total <= 0 {
		return 0
	}
	return max(0, min(int64(float64(done)/float64(total)*100), 100))
}

// Bytes is bytes for people.
func Bytes(bytes int64) string { return figure.Size(bytes) }

// Rate is a rate for people, "" where nothing comes.
func Rate(bytesPerSecond int64) string {
	if bytesPerSecond <= 0 {
		return ""
	}
	return Bytes(bytesPerSecond) + "/s"
}

// Remaining is how long the rest takes at a rate, "" where nobody can tell.
func Remaining(done, total, bytesPerSecond int64) string {
	if bytesPerSecond <= 0 || done >= total {
		return ""
	}
	seconds := float64(total-done) / float64(bytesPerSecond)
	switch {
	case seconds >= 100*3600:
		return "days left"
	case seconds >= 3600:
		return strings.TrimSuffix(time.Duration(seconds*float64(time.Second)).Round(time.Minute).String(), "0s") + " left"
	}
	return time.Duration(max(seconds, 1)*float64(time.Second)).Round(time.Second).String() + " left"
}

// Clock is a moment for people, in this host's time: without the day where it is today.
func Clock(t time.Time) string {
	t = t.Local()
	if t.Format(time.DateOnly) == time.Now().Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// Middle shortens s to so many columns by what is in its middle: a reference keeps its last
// part, which tells it from others, as "registry.exa…/payments-api:v1".
func Middle(s string, width int) string {
	if runewidth.StringWidth(s) <= width || width < 3 {
		return s
	}
	tail := s[strings.LastIndex(s, "/")+1:]
	if tail != s {
		tail = "/" + tail
	}
	if w := runewidth.StringWidth(tail); w > width-4 {
		tail = runewidth.TruncateLeft(tail, w-(width-1)*2/3, "")
	}
	return runewidth.Truncate(s, width-1-runewidth.StringWidth(tail), "") + "…" + tail
}

// Ago is how long ago t was, as "5 minutes ago"; the zero time is "unknown".
func Ago(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	d := time.Since(t)
	if d < time.Second {
		return "just now"
	}
	return strings.ToLower(units.HumanDuration(d)) + " ago"
}

// Plural is "1 node" or "3 nodes".
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Wrap breaks text at spaces into lines of at most width columns, the first one
// aside indented; a word that is longer is left whole. 0: no limit.
func Wrap(text string, width, indent int) []string {
	if width <= 0 {
		return []string{text}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case runewidth.StringWidth(line)+1+runewidth.StringWidth(word) > width:
			lines = append(lines, line)
			line = strings.Repeat(" ", indent) + word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
