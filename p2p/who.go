package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"seeder/p2p/catalog"
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
		return selector{}, fmt.Errorf("label selector %q: want key=value or key!=value, as zone=a or role!=gpu", s)
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

// leftOut says why the label selectors of an announcement leave out a node with
// these labels; empty where they do not.
func leftOut(on []string, labels map[string]string) string {
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
	return fmt.Sprintf("--on %s matches no node that is there; %s", strings.Join(e.On, " --on "), has)
}

// CheckOn asks the members for their labels: an error where a selector is none, and
// a *NoNodeError where none of them is meant.
func (n *Node) CheckOn(ctx context.Context, on []string) error {
	var errs []error
	for _, s := range on {
		errs = append(errs, CheckSelector(s))
	}
	if err := errors.Join(errs...); err != nil || len(on) == 0 {
		return err
	}
	known := map[string]bool{}
	for _, a := range n.ask(ctx, []string{noImage}) { // no image: the labels are enough
		if a.err != nil {
			continue
		}
		if leftOut(on, a.labels) == "" {
			return nil
		}
		for k, v := range a.labels {
			known[k+"="+v] = true
		}
	}
	return &NoNodeError{On: on, Labels: slices.Sorted(maps.Keys(known))}
}

// ruledOut says which rule keeps this host from holding a, empty where none does.
func (n *Node) ruledOut(a catalog.Announcement) string {
	if why := leftOut(a.On, n.cfg.Labels); why != "" {
		return why
	}
	if !n.cfg.Accept.Match(a.Reference) {
		return fmt.Sprintf("no pattern of images.accept %q on this host matches", n.cfg.Accept.Strings())
	}
	return ""
}

// asideOf reports whether this host is to let go of what it has of rec: a rule keeps it
// from holding that, and the others do not count on it as the one that announced it.
func (n *Node) asideOf(rec catalog.Record) bool {
	return rec.AnnouncedBy() != n.identity.ID() && n.ruledOut(rec.Announcement()) != ""
}

// standAside leaves to the kubelet's garbage collection what this host held of an
// image before a rule came to exclude it, as a withdrawal does. What somebody else
// put under that name is not touched. The error is a *ruledOutError.
func (n *Node) standAside(ctx context.Context, rec catalog.Record, why string) error {
	ref := rec.Announcement().Reference
	aside := &ruledOutError{why: why}
	before := n.catalog.ReachedTarget(ref)
	if before == "" || !n.asideOf(rec) {
		aside.letGo = true
		return aside
	}
	have, err := n.store.List(ctx)
	if err == nil && have[ref] == before {
		if err = n.store.Release(ctx, ref); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			n.log.Info("released: a rule excludes this host", "ref", ref, "digest", before, "rule", why)
		}
	}
	if aside.letGo = err == nil; err != nil {
		n.log.Warn("cannot let go of an image that is not for this host any more; it is tried again", "ref", ref, "err", err)
	}
	n.unkept.Store(true)
	n.pinned.Store(true)
	return aside
}

// ruledOutError excludes this host by a rule.
type ruledOutError struct {
	why   string
	letGo bool // of what it had
}

func (e *ruledOutError) Error() string { return e.why }

// Excluded is the rule.
func (e *ruledOutError) Excluded() string { return e.why }
