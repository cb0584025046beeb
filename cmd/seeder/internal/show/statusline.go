package show

import (
	"fmt"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// StatusLine is one line for systemd's STATUS=.
func StatusLine(s report.Status) string {
	line := term.Plural(s.Members, "member") + ", nothing announced"
	if s.Images.Total > 0 {
		line = fmt.Sprintf("%s, %d of %s ready", term.Plural(s.Members, "member"), s.Images.Ready, term.Plural(s.Images.Total, "image"))
	}
	if !s.Containerd.OK && s.Containerd.Reason != "" {
		line = "waiting for containerd: " + term.Clean(s.Containerd.Reason) + "; " + line
	}
	return line
}
