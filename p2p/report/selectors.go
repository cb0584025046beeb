package report

import (
	"fmt"
	"strings"
)

// NoNodeError says that label selectors match no node that answers.
type NoNodeError struct {
	On     []string
	Labels []string // that the nodes have, as key=value
}

func (e *NoNodeError) Error() string {
	has := "no node has a label (`labels` in its configuration)"
	if len(e.Labels) > 0 {
		has = "the nodes have " + strings.Join(e.Labels, ", ")
	}
	return fmt.Sprintf("--on %s matches no alive node; %s", strings.Join(e.On, " --on "), has)
}
