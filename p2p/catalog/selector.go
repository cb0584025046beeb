package catalog

import (
	"fmt"
	"strings"
)

// selector is one condition on a node's labels.
type selector struct {
	key, value string
	not        bool
}

// parseSelector reads key=value or key!=value.
func parseSelector(s string) (selector, error) {
	key, value, ok := strings.Cut(s, "=")
	key, not := strings.CutSuffix(key, "!")
	switch {
	case !ok, key == "", strings.HasPrefix(value, "="), strings.ContainsAny(s, " \t,"):
		return selector{}, fmt.Errorf("label selector %q: want key=value or key!=value, e.g. zone=a or role!=gpu", s)
	}
	return selector{key: key, value: value, not: not}, nil
}

// CheckSelector says what is wrong with a label selector.
func CheckSelector(s string) error {
	_, err := parseSelector(s)
	return err
}

// matches reports whether a node with these labels satisfies s. One that lacks the
// label satisfies !=, as in Kubernetes.
func (s selector) matches(labels map[string]string) bool {
	value, has := labels[s.key]
	if s.not {
		return !has || value != s.value
	}
	return has && value == s.value
}

// LeftOut says why the label selectors of an announcement leave out a node with
// these labels; empty where they do not.
func LeftOut(on []string, labels map[string]string) string {
	for _, text := range on {
		s, err := parseSelector(text)
		if err != nil { // a newer version's kind: better too few nodes than too many
			return fmt.Sprintf("this version does not understand the announcement's %v", err)
		}
		if s.matches(labels) {
			continue
		}
		if value, has := labels[s.key]; has {
			return fmt.Sprintf("announced with --on %s, this node has %s=%s", text, s.key, value)
		}
		return fmt.Sprintf("announced with --on %s, this node has no label %s", text, s.key)
	}
	return ""
}
