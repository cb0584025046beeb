package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/wait"
	"seeder/p2p/report"
	"seeder/store/artifact"
)

// The kinds of events, in the order in which a command sees them.
const (
	EventSource    = "source"    // where the image comes from, and why where there was a choice
	EventSending   = "sending"   // an archive goes to the daemon: done_bytes of total_bytes, where that is known
	EventPreparing = "preparing" // the image is read and cut into chunks
	EventAnnounced = "announced" // the cluster knows: ref, digest, version, total_bytes
	EventProgress  = "progress"  // image: the row of the matrix, whenever it changes
	EventReady     = "ready"     // image: every alive, eligible member is ready; saved: what that took
	EventPods      = "pods"      // pods: those that wait for an image; of announce, where there are any
	EventDone      = "done"      // the command is done
	EventError     = "error"     // error, code: the command failed
	eventAlive     = "alive"     // nothing has happened for a while, and the daemon is there; no command shows it
)

// Event is one line of the output of announce and wait with -o json, and of what
// the daemon streams to them.
type Event struct {
	Event      string             `json:"event"`
	Time       time.Time          `json:"time"`
	Ref        string             `json:"ref,omitempty"`
	Digest     string             `json:"digest,omitempty"`
	Source     string             `json:"source,omitempty"`
	Reason     string             `json:"reason,omitempty"`
	Version    uint64             `json:"version,omitempty"`
	DoneBytes  int64              `json:"done_bytes,omitempty"`
	TotalBytes int64              `json:"total_bytes,omitempty"`
	Image      *report.ImageState `json:"image,omitempty"`
	Saved      *Saved             `json:"saved,omitempty"` // of ready: what was saved
	Pods       []WaitingPod       `json:"pods,omitempty"`
	Standing
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"` // exit code that the error asks for
}

// Standing is what was so before anybody asked for it.
type Standing struct {
	// Already: of ready, it was so before anybody waited; of announced, it was so before.
	Already bool      `json:"already,omitempty"`
	By      string    `json:"by,omitempty"` // of announced, already: who announced it, and when
	At      time.Time `json:"at,omitzero"`
}

// WaitingPod is a pod that waits for an image.
type WaitingPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node,omitempty"` // "" where none is chosen
	Image     string `json:"image"`          // as the pod has it
	Reason    string `json:"reason"`         // as ErrImageNeverPull
	Detail    string `json:"detail"`         // how far the image is
	Fix       string `json:"fix"`            // what makes the pod start
}

// Cluster is what the control API asks of the node.
type Cluster interface {
	Viewer
	Operator
	Examiner
}

// Viewer shows how the cluster is.
type Viewer interface {
	matrix
	Members() report.Members
	AskMembers(ctx context.Context) report.Members
	Status(ctx context.Context) report.Status
}

// matrix shows how far which node is with which image.
type matrix interface {
	Images(ctx context.Context, refs ...string) (report.Images, error)
	// Watch calls fn when a node may have come to its end with refs, until ctx ends.
	Watch(ctx context.Context, fn func(), refs ...string)
}

// Operator changes what the cluster shall hold.
type Operator interface {
	Withdraw(ctx context.Context, ref string, w report.Withdrawal) error
	// CheckOn is an error where an order for these label selectors would be for no node.
	CheckOn(ctx context.Context, on []string) error
	Forget(name string) error
}

// Examiner finds out what is wrong.
type Examiner interface {
	Diagnose(ctx context.Context) report.Diagnosis
	Holders(ctx context.Context, refs []string) map[string][]string
}

const (
	// minPause is how often the members are asked while somebody waits; asking them for
	// how far they are takes no more than a tenth of the time, up to maxPause. When one
	// says that it is ready all are asked soon.
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// watcher follows images until they are converged.
type watcher struct {
	cluster matrix
	refs    []string // none: everything announced
	// versions are those of the refs that were announced just now; of others it is
	// whichever there is.
	versions map[string]uint64
	emit     func(Event) error
	all      bool // nodes that are away are waited for, too

	nobody map[string]error // why no node takes an image, by reference

	rows   map[string]report.ImageState
	ready  map[string]bool
	looked bool
}

// wait emits a progress event for each change of a row and a ready event for
// each row that is converged, and returns when all are.
func (w *watcher) wait(ctx context.Context) error {
	w.rows, w.ready, w.nobody = map[string]report.ImageState{}, map[string]bool{}, map[string]error{}
	settled := wait.NewSignal()
	watched, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { w.cluster.Watch(watched, settled.Set, w.refs...) })
	for {
		start := time.Now()
		images, err := w.cluster.Images(ctx, w.refs...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// A reference that nobody has announced yet is waited for like any other:
		// a host that has just joined does not know the catalog.
		if err == nil {
			if done, err := w.poll(images.Images); done || err != nil {
				return errors.Join(err, w.onNobody())
			}
		}
		if err := pause(ctx, time.Since(start), settled); err != nil {
			return err
		}
	}
}

// pause waits for the next look, after one that took so long.
func pause(ctx context.Context, took time.Duration, settled wait.Signal) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(max(10*took, minPause), maxPause)):
		return nil
	case <-settled:
	}
	select { // many become ready at once
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(took, minPause)):
		return nil
	}
}

// poll takes the matrix as it is now and reports whether all of it is converged.
func (w *watcher) poll(rows []report.ImageState) (done bool, err error) {
	first := !w.looked && len(w.versions) == 0 // what is ready now nobody has to wait for
	w.looked = true
	done = len(rows) >= len(w.refs)
	for _, row := range rows {
		if err := w.check(row); err != nil {
			return false, err
		}
		if row.State == "withdrawn" {
			continue
		}
		if row.Version < w.versions[row.Reference] {
			done = false // the catalog's answer is older than the announcement
			continue
		}
		is := Converged(row) && (!w.all || row.Everywhere())
		delete(w.nobody, row.Reference)
		if is && row.Ready == 0 { // there is nothing to wait for
			w.nobody[row.Reference], w.ready[row.Reference] = noNode(row), false
			continue
		}
		if first && is {
			w.rows[row.Reference], w.ready[row.Reference] = row, true
			sum := Savings(row)
			if err := w.emit(Event{Event: EventReady, Ref: row.Reference, Image: &row, Saved: &sum, Standing: Standing{Already: true}}); err != nil {
				return false, err
			}
			continue
		}
		if !reflect.DeepEqual(w.rows[row.Reference], row) {
			w.rows[row.Reference] = row
			if err := w.emit(Event{Event: EventProgress, Ref: row.Reference, Image: &row}); err != nil {
				return false, err
			}
		}
		if !is {
			done, w.ready[row.Reference] = false, false
			continue
		}
		if w.ready[row.Reference] {
			continue
		}
		w.ready[row.Reference] = true
		sum := Savings(row)
		if err := w.emit(Event{Event: EventReady, Ref: row.Reference, Image: &row, Saved: &sum}); err != nil {
			return false, err
		}
	}
	return done, nil
}

// onNobody is an error where no node takes an image that was waited for.
func (w *watcher) onNobody() error {
	var errs []error
	for _, ref := range slices.Sorted(maps.Keys(w.nobody)) {
		errs = append(errs, w.nobody[ref])
	}
	if len(errs) == 0 {
		return nil
	}
	return cli.WithCode(cli.ExitNotConverged, errors.Join(errs...))
}

// noNode says why no node takes an image: the reasons, each with how many have it.
func noNode(row report.ImageState) error {
	why, platform := map[string]int{}, false
	for _, n := range row.Nodes {
		reason := string(n.State)
		if n.Reason != "" {
			reason += ": " + n.Reason
		}
		why[reason]++
		platform = platform || strings.HasPrefix(n.Reason, artifact.OtherPlatform)
	}
	var list []string
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		list = append(list, fmt.Sprintf("%d %s", why[reason], reason))
	}
	text := fmt.Sprintf("%s is announced as version %d, but no node takes it: %s", cli.ShortRef(row.Reference), row.Version, strings.Join(list, "; "))
	if platform {
		text += fmt.Sprintf("; if the platform that it names is wrong, seeder announce %s --any-platform brings it to every node", cli.ShortRef(row.Reference))
	}
	return errors.New(text)
}

// check says when there is nothing left to wait for.
func (w *watcher) check(row report.ImageState) error {
	if row.State == "withdrawn" && len(w.refs) > 0 {
		return fmt.Errorf("%s is withdrawn since %s (by %s); nothing to wait for", cli.ShortRef(row.Reference), row.AnnouncedAt.Format(time.RFC3339), row.AnnouncedBy)
	}
	if version := w.versions[row.Reference]; version > 0 && row.Version > version {
		return fmt.Errorf("%s was announced again by %s as version %d while version %d was on its way; follow it with `seeder wait %s`",
			cli.ShortRef(row.Reference), row.AnnouncedBy, row.Version, version, cli.ShortRef(row.Reference))
	}
	return nil
}

// Converged reports whether every alive node that is meant to hold the image is ready.
func Converged(row report.ImageState) bool { return row.Settled() }
