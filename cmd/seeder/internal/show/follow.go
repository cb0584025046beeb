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
	// Last is asked for what is shown before the end of a command that succeeds. It may be nil.
	Last func() []control.Event

	mu   sync.Mutex // the archive's reader reports from the transport's goroutine
	ref  string     // announced
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
		f.ref = e.Ref
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
	if f.Announcing && f.ref == "" {
		return cli.WithCode(cli.ExitNotConverged, fmt.Errorf("%s: the image was not announced yet; try again", what))
	}
	lines := []string{what}
	if f.Announcing {
		lines[0] += fmt.Sprintf("; seeding continues, follow it with `seeder wait %s`", cli.ShortRef(f.ref))
	}
	lines = append(lines, unready(f.rows)...)
	if len(f.rows) == 0 && !f.Announcing {
		lines[0] += ": not everything that was asked for is announced"
	}
	return cli.WithCode(cli.ExitNotConverged, errors.New(strings.Join(lines, "\n  ")))
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
