// Package show is images, nodes and events as a terminal shows them.
//
// It owns what a line says and which lines there are. It never asks the daemon by itself,
// but for a Follower, which follows one stream of events, and never draws: that is term's.
//
// Invariant: what is shown fits the terminal; of many nodes or images it says how many
// are left out.
package show

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// errTimeout is the cause of the end of waiting when --timeout is over.
var errTimeout = errors.New("timeout")

// Follower follows the events of one command to its end and shows them.
type Follower struct {
	view       view
	timeout    time.Duration // 0: none
	Announcing bool          // what is announced by this command, rather than waited for
	// Several are the images that this command announces, full names; none where it does not
	// know them or there is one.
	Several []string
	// Last is asked for what is shown before the end of a command that succeeds. It may be nil.
	Last func() []control.Event

	mu   sync.Mutex // the archive's reader reports from the transport's goroutine
	refs []string   // announced
	rows map[string]report.ImageState
}

// NewFollower returns a follower that shows events on env's output as out and the
// terminal want it; timeout 0 is none.
func NewFollower(env *cli.Env, out cli.Output, timeout time.Duration) *Follower {
	f := &Follower{timeout: timeout, rows: map[string]report.ImageState{}}
	terminal := term.Of(env, env.Stdout)
	switch {
	case out == "json":
		f.view = jsonView{json.NewEncoder(env.Stdout)}
	case terminal.Live:
		f.view = newLiveView(env.Stdout, func() term.Terminal { return term.Of(env, env.Stdout) })
	default:
		f.view = &plainView{w: env.Stdout, term: terminal, start: time.Now(), cells: map[string]plainCell{}}
	}
	return f
}

// Event shows one event. It is safe for concurrent use.
func (f *Follower) Event(e control.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.Event == control.EventAnnounced {
		f.refs = append(f.refs, e.Ref)
	}
	if e.Image != nil {
		f.rows[e.Image.Reference] = *e.Image
	}
	if e.Event == control.EventDone && f.Last != nil {
		for _, last := range f.Last() {
			f.view.show(last)
		}
	}
	f.view.show(e)
}

// Follow asks the daemon and shows what it streams. Its error says what is not
// ready yet where the time is over or the user has had enough. The view is closed
// then.
func (f *Follower) Follow(ctx context.Context, c *control.Client, method, path string, query url.Values, body io.Reader) error {
	defer f.view.close()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.timeout, errTimeout)
		defer cancel()
	}
	err := c.Stream(ctx, method, path, query, body, f.Event)
	if err == nil {
		if len(f.rows) == 0 && !f.Announcing {
			f.view.nothing()
		}
		return nil
	}
	if ctx.Err() != nil {
		err = f.unfinished(context.Cause(ctx))
	}
	if not := f.unannounced(); not != "" {
		err = cli.WithCode(cli.ExitCode(err), fmt.Errorf("%w\n  %s", err, not))
	}
	f.Event(control.Event{Event: control.EventError, Time: time.Now().UTC(), Error: err.Error(), Code: cli.ExitCode(err)})
	return err
}

// Fail shows that the command failed before there was anything to follow, and returns err.
// The view is closed then.
func (f *Follower) Fail(err error) error {
	f.Event(control.Event{Event: control.EventError, Time: time.Now().UTC(), Error: err.Error(), Code: cli.ExitCode(err)})
	f.view.close()
	return err
}

// unfinished is the error of a wait that ended before convergence.
func (f *Follower) unfinished(cause error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := "stopped waiting"
	if errors.Is(cause, errTimeout) {
		what = fmt.Sprintf("not converged within %s", f.timeout)
	}
	if f.Announcing && len(f.refs) == 0 {
		image := "the image was"
		if len(f.Several) > 0 {
			image = "the images were"
		}
		return cli.WithCode(cli.ExitNotConverged, fmt.Errorf("%s: %s not announced yet; try again", what, image))
	}
	lines := []string{what}
	if f.Announcing {
		wait := "seeder wait" // for all that is announced
		if len(f.refs) <= maxFollowed {
			wait += " " + shortAll(f.refs)
		}
		lines[0] += fmt.Sprintf("; seeding continues, follow it with `%s`", wait)
	}
	lines = append(lines, unready(f.rows)...)
	if len(f.rows) == 0 && !f.Announcing {
		lines[0] += ": not everything that was asked for is announced"
	}
	return cli.WithCode(cli.ExitNotConverged, errors.New(strings.Join(lines, "\n  ")))
}

// maxFollowed bounds the images of a command that is shown.
const maxFollowed = 10

// unannounced says which of several images are announced and which are not, where some are.
func (f *Follower) unannounced() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var not []string
	for _, ref := range f.Several {
		if !slices.Contains(f.refs, ref) && !slices.Contains(not, ref) {
			not = append(not, ref)
		}
	}
	if len(not) == 0 || len(f.refs) == 0 {
		return ""
	}
	return fmt.Sprintf("announced: %s\n  not announced: %s", shortAll(f.refs), shortAll(not))
}

// shortAll are references as a user types them.
func shortAll(refs []string) string {
	var out []string
	for _, ref := range refs {
		out = append(out, cli.ShortRef(ref))
	}
	return strings.Join(out, " ")
}

// unready lists the cells that are waited for, at most maxReasons.
func unready(rows map[string]report.ImageState) []string {
	var out []string
	for _, row := range rows {
		if row.Everywhere() {
			continue
		}
		for _, n := range row.Nodes {
			if n.State != report.Ready && n.State != report.Excluded {
				out = append(out, fmt.Sprintf("%s on %s: %s%s", short(row.Reference), term.Clean(n.Name), StateText(n), because(n)))
			}
		}
	}
	slices.Sort(out)
	if len(out) > maxReasons {
		out = append(out[:maxReasons], fmt.Sprintf("… and %d more", len(out)-maxReasons))
	}
	return out
}

func because(n report.NodeState) string {
	if n.Reason == "" || n.Reason == string(n.State) {
		return ""
	}
	return " (" + term.Clean(n.Reason) + ")"
}
