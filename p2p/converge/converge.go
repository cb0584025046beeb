// Package converge brings this host's images to what the catalog says, and keeps them
// there. Each announced reference has one task. The function next (table.go) moves the task
// from state to state when something happens to it.
//
// It owns the table of states and events, the loop that tells tasks what happened
// (loop.go), the jobs that find out and act (job.go), what is kept or released of
// earlier versions (keep.go), the rules that exclude this host (rules.go), and what is
// announced without being asked (auto.go). It does not know how an image is fetched, who the
// peers are, or how anything is shown. It gets functions and interfaces for those.
//
// Words: a job works on one task; a hint says that the store may differ from what was
// found; a final state waits for the next announcement alone.
//
// Invariant: a task is ready only if a check of the store found the record of that very task
// in place, and began after the last hint.
//
// Goroutines: Run is the loop; each job is one more, for which Run waits.
package converge

import (
	"context"
	"log/slog"

	"github.com/opencontainers/go-digest"

	"seeder/internal/pattern"
	"seeder/p2p/catalog"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// Store is what this host has. Errors wrap fs.ErrNotExist where a thing is not there.
type Store interface {
	// List maps the references that have an image record to their targets.
	List(ctx context.Context) (map[string]digest.Digest, error)
	// Check says whether ref is at target, complete and visible to the kubelet;
	// where it is not, reason says what lacks.
	Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error)
	// Intact says whether the last Check of ref found it ready and what it found is still
	// there, as far as that can be told cheaply; true where it cannot. The last Check may
	// be one that another part of the daemon has made.
	Intact(ctx context.Context, ref string) bool
	// FromRegistry reports whether ref was pulled from a registry.
	FromRegistry(ctx context.Context, ref string) (bool, error)
	// Preloaded reports whether k3s has put ref there from its agent/images.
	Preloaded(ctx context.Context, ref string) (bool, error)
	// Changes wakes up after image records changed; a hint, never complete. The
	// channel closes when ctx ends.
	Changes(ctx context.Context) <-chan struct{}
}

// Keeper protects images from garbage collection.
type Keeper interface {
	// KeepPrevious protects what is here of these targets from garbage collection
	// and of no others that it protected before.
	KeepPrevious(ctx context.Context, targets []digest.Digest) error
	// Discard releases an earlier target of ref, whose present target stays.
	Discard(ctx context.Context, ref string, target digest.Digest) error
	// Release takes the protection from garbage collection off ref.
	Release(ctx context.Context, ref string) error
	// ReleaseOthers takes that protection off all versions of the references in wanted
	// but those targets, however they came to have it, and names what lost it.
	ReleaseOthers(ctx context.Context, wanted map[string][]digest.Digest) ([]string, error)
	// HeedsPins reports whether what is pinned is safe from the kubelet's garbage
	// collection.
	HeedsPins() bool
}

// Remover deletes images.
type Remover interface {
	// InUse names the containers that use the image of ref.
	InUse(ctx context.Context, ref string) ([]string, error)
	// Remove deletes ref and what only it needs, and returns the bytes that that freed.
	Remove(ctx context.Context, ref string) (freedBytes int64, err error)
	// DropFrames removes what is kept for peers of blobs that no image has whose seed
	// index is given, and returns the bytes that it freed.
	DropFrames(ctx context.Context, seeds []digest.Digest) (freed int64, err error)
}

// Column is where this host's states are shown. What is said of another announcement
// than the newest that Begin told of is not shown: a job that was superseded may speak
// late.
type Column interface {
	// Begin shows that a is the newest announcement of its reference, and queued.
	Begin(a catalog.Announcement)
	// Queue shows that what is here of a is to be obtained again, and why.
	Queue(a catalog.Announcement, reason string)
	// Settle shows a state that holds until the next one. lackingBytes is what the disk
	// lacks while it waits for room.
	Settle(a catalog.Announcement, s report.State, reason string, lackingBytes int64)
	// Remove shows nothing of a any more.
	Remove(a catalog.Announcement)
	// Purged says that the image of ref was removed, and how many bytes that freed; Freed
	// that more of it was.
	Purged(ref string, bytes int64)
	Freed(ref string, bytes int64)
}

// Seeds are the seed indexes of announced images.
type Seeds interface {
	// Lost reports whether somebody has asked for seed in vain.
	Lost(seed digest.Digest) bool
	// Restore gets the seed index of rec again where it is lost.
	Restore(ctx context.Context, rec catalog.Record)
}

// Verify checks the store for what is fetched.
type Verify func(ctx context.Context) (ready bool, reason string, err error)

// Config is what a loop is made of. What is not named as optional has to be there.
type Config struct {
	Catalog *catalog.Catalog
	Store   Store
	Keeper  Keeper
	Remover Remover
	Column  Column
	Seeds   Seeds

	// Fetch gets what this host lacks of rec and imports it; verify says whether it is
	// ready then. Its outcome is one of Fetched, Excluded, Lacking and Failed.
	Fetch func(ctx context.Context, rec catalog.Record, verify Verify) Outcome
	// Announce announces what the store has under a reference, for the nodes that the
	// announcement before was for, unless its record is another one than since by then: that
	// wraps catalog.ErrSuperseded.
	Announce func(ctx context.Context, ref string, since catalog.Record) error
	// MayAnnounce reports whether this node's announcements count.
	MayAnnounce func() bool
	// Down is why containerd does not answer, empty while it does: it is asked.
	Down func(ctx context.Context) string
	// Note records an event about an announcement.
	Note func(kind report.EventKind, a catalog.Announcement, reason string)
	// Failed counts a try that failed, by one of the causes.
	Failed func(cause string)
	// Beat says that the loop came by.
	Beat func()

	Self   trust.NodeID // this node's identity
	Labels map[string]string
	Accept pattern.List // references this host holds; empty: all
	// Follow: what this node announced and somebody has changed since is announced
	// again; else that is left to people.
	Follow bool
	// Auto are the references that are announced without being asked, none where it is
	// empty, and AutoLocal those that came from no registry.
	Auto      pattern.List
	AutoLocal bool
	// KeepPrevious is how many earlier targets of a reference are kept.
	KeepPrevious int
	// Pinned: nothing but people removes an announced image. Else the kubelet does,
	// too, and is not to be fought.
	Pinned bool
	Log    *slog.Logger // nil: none
}

// The causes of a try that failed.
const (
	CauseContainerd = "containerd" // it was away
	CauseNoSeed     = "no_seed"    // nobody who is reachable has the seed index
	CauseOther      = "other"      // `seeder images` and the log say what
)

// Fetched is the outcome of a fetch after which verify has said that all is there.
func Fetched() Outcome { return Outcome{state: ready} }

// Excluded is the outcome for an image that this host should not hold, by what the
// image is.
func Excluded(reason string) Outcome { return Outcome{state: foreign, reason: reason} }

// Lacking is the outcome where there is no room: bytes of disk are lacking.
func Lacking(reason string, bytes int64) Outcome {
	return Outcome{state: waiting, retry: steady, reason: reason, lacking: bytes}
}

// NoSeed is the outcome where no reachable member has the seed index.
func NoSeed(err error) Outcome {
	return Outcome{state: waiting, retry: brief, reason: err.Error(), cause: CauseNoSeed}
}

// Failed is the outcome of what an error ended.
func Failed(err error) Outcome {
	return Outcome{state: failed, retry: backoff, reason: err.Error(), cause: CauseOther, err: err}
}
