package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/announce"
	"seeder/p2p/catalog"
	"seeder/p2p/diagnose"
	"seeder/p2p/exchange"
	"seeder/p2p/gossip"
	"seeder/p2p/images"
	"seeder/p2p/matrix"
	"seeder/p2p/members"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

// Node is one running member. New starts nothing; Open acquires and starts;
// Close ends everything and waits.
type Node struct {
	cfg   Config
	store Store
	log   *slog.Logger

	run       *supervisor
	port      *port
	catalog   *catalog.Catalog
	gossip    *gossip.Gossip
	members   *members.Members
	images    *images.Set
	announcer *announce.Announcer
	exchange  *exchange.Exchange
	matrix    *matrix.Matrix
	diagnoser *diagnose.Diagnoser

	events events
	closed sync.Once
}

// New returns a node that does nothing yet.
func New(cfg Config, store Store) *Node {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Protocols == (gossip.Protocols{}) {
		cfg.Protocols = protocols
	}
	if cfg.Join == nil {
		cfg.Join = func() []string { return nil }
	}
	return &Node{cfg: cfg, store: store, log: cfg.Log.With("component", "node")}
}

// Open loads identity and catalog, listens on both ports, joins the cluster and
// starts to converge. It does not wait for containerd or for other members. What
// it opened is closed again where it fails.
func (n *Node) Open(ctx context.Context) (err error) {
	ctx, n.run = supervise(ctx, n.log)
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	id, err := openIdentity(n.cfg, n.log)
	if err != nil {
		return err
	}
	n.catalog, err = catalog.Open(catalog.Config{
		Path:  filepath.Join(n.cfg.DataDir, "catalog.db"),
		Allow: announce.Rule{Announcers: n.cfg.Announcers, Excluded: n.cfg.Excluded}.Allows,
		Now:   n.cfg.Now,
		Log:   n.cfg.Log.With("component", "catalog"),
	})
	if err != nil {
		return fmt.Errorf("open the catalog: %w", err)
	}
	counters := newMetrics(n.cfg.Registerer)
	n.port, err = openPort(n.cfg, id, counters, func(id trust.NodeID) { n.gossip.Proved(id) }, n.log)
	if err != nil {
		return err
	}
	loops := n.assemble(id, counters)
	if err := n.gossip.Open(ctx); err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	n.run.group.Go(func() error { return n.port.serve(ctx) })
	n.exchange.Tell()
	for _, name := range []string{"converge", "health", "sync"} {
		n.run.beat(name) // the time begins before the loop does
	}
	for _, l := range loops {
		n.run.start(ctx, l.name, l.run)
	}
	return nil
}

func openIdentity(cfg Config, log *slog.Logger) (*trust.Identity, error) {
	path := filepath.Join(cfg.DataDir, "identity")
	aside, err := trust.BindIdentity(path, cfg.Machine)
	if err != nil {
		return nil, err
	}
	if aside != "" {
		log.Warn("made a new identity: data_dir was copied from another machine", "old", aside)
	}
	id, err := trust.LoadOrCreateIdentity(path)
	if err != nil {
		return nil, fmt.Errorf("load this node's identity: %w", err)
	}
	return id, nil
}

// Close leaves the cluster, ends every transfer and waits for all goroutines.
// What was verified stays staged. It may be called more than once.
func (n *Node) Close() error {
	var errs []error
	n.closed.Do(func() {
		since := time.Now()
		if n.run != nil {
			n.run.cancel(errClosing)
		}
		if n.gossip != nil {
			errs = append(errs, n.gossip.Close())
		}
		if n.port != nil {
			errs = append(errs, n.port.close(since))
		}
		if n.run != nil {
			errs = append(errs, n.run.group.Wait())
		}
		if n.images != nil {
			n.images.Close()
		}
		if n.port != nil {
			n.port.client.Close()
		}
		if n.catalog != nil {
			errs = append(errs, n.catalog.Close())
		}
	})
	return errors.Join(errs...)
}

// Wait blocks until a part of the node fails or Close is called; the error says
// which part.
func (n *Node) Wait() error { return n.run.group.Wait() }

// Stuck is an error that names a loop of the node that has not made a turn for a minute,
// nil where all do. A containerd that is away or hangs, a member that is silent and a
// full disk make none stuck: what asks them gives up in time.
func (n *Node) Stuck() error { return n.run.stuck() }

// ID is this node's identity, as `announcers` lists it.
func (n *Node) ID() trust.NodeID { return n.port.id }

// TransferAddress is where this node listens for transfers, host:port.
func (n *Node) TransferAddress() string { return n.port.listener.Addr().String() }

// SetLimits changes the limits of all transfers, those that run too. Both are in
// bytes per second, 0 for none.
func (n *Node) SetLimits(upload, download int64) { n.port.setLimits(upload, download) }

// SetSecrets changes the secrets: the first is used, all are accepted. Gossip and new
// connections use them at once. Where a secret was taken away, the connections from before
// end half a minute later.
func (n *Node) SetSecrets(secrets trust.Secrets) error {
	return n.port.setSecrets(secrets, n.gossip.SetKeys)
}

// Announce has the store prepare what it has under ref, puts that into the catalog and
// tells the cluster (announce.Announcer).
func (n *Node) Announce(ctx context.Context, ref string, o Options) (Announced, error) {
	return n.announcer.Announce(ctx, ref, o)
}

// Withdraw puts a withdrawal of ref into the catalog: nobody seeds it any more. The
// error of an unknown ref names the nearest announced ones and wraps
// fs.ErrNotExist.
func (n *Node) Withdraw(ctx context.Context, ref string, w report.Withdrawal) error {
	return n.announcer.Withdraw(ctx, ref, w)
}

// Previous is the target that this host had under ref before the announced one.
func (n *Node) Previous(ref string) (digest.Digest, error) { return n.announcer.Previous(ref) }

// MayAnnounce is an error where this node's announcements count for nothing.
func (n *Node) MayAnnounce() error { return n.announcer.MayAnnounce() }

// References are what is announced now.
func (n *Node) References() []string { return n.catalog.References() }

// Here is what ref is announced as, and how far this node is with it; ok is false where it
// is not announced. Nobody is asked.
func (n *Node) Here(ref string) (target ocispec.Descriptor, s report.State, ok bool) {
	return n.matrix.Here(ref)
}

// Records are the encoded records of the whole catalog, as another node gets them.
func (n *Node) Records() [][]byte { return n.exchange.Records() }

// Images is the matrix for refs, or for everything announced. It asks every
// alive member and is answered within a few seconds whatever they do. An unknown
// ref is an error that names the nearest announced ones and wraps
// fs.ErrNotExist.
func (n *Node) Images(ctx context.Context, refs ...string) (report.Images, error) {
	return n.matrix.Images(ctx, refs...)
}

// Watch calls fn whenever a node has come to its end with each of refs, as far as that is
// heard without asking again and again. It returns when ctx ends.
func (n *Node) Watch(ctx context.Context, fn func(), refs ...string) {
	n.matrix.Watch(ctx, fn, refs...)
}

// Status is this node alone.
func (n *Node) Status(ctx context.Context) report.Status { return n.matrix.Status(ctx) }

// Counts says how the node is.
func (n *Node) Counts() report.Counts { return n.matrix.Counts() }

// CheckOn asks the members for their labels: an error where a selector is none, and
// a *report.NoNodeError where none of them is meant.
func (n *Node) CheckOn(ctx context.Context, on []string) error { return n.matrix.CheckOn(ctx, on) }

// AskMembers lists the cluster with the labels that the members have now.
func (n *Node) AskMembers(ctx context.Context) report.Members { return n.matrix.AskMembers(ctx) }

// Members lists the cluster. Nobody is asked.
func (n *Node) Members() report.Members { return n.members.List() }

// Forget drops a member that is away from the cluster, on every node that is there.
func (n *Node) Forget(name string) error {
	if err := n.members.Forget(name); err != nil {
		return err
	}
	n.log.Info("removed a dead member", "member", name)
	return nil
}

// Diagnose tries the ways between this node and each member, in both directions. It
// takes some ten seconds at most.
func (n *Node) Diagnose(ctx context.Context) report.Diagnosis { return n.diagnoser.All(ctx) }

// Holders are the members whose stores have these references, no matter who announced
// them or nobody: by reference, the members' names. Who does not answer in time is
// none.
func (n *Node) Holders(ctx context.Context, refs []string) map[string][]string {
	return n.diagnoser.Holders(ctx, refs)
}

// Events are the last events of this node, newest first: at most 2 × 128, since it
// was opened.
func (n *Node) Events() []report.Event { return n.events.list() }

// Traffic is what went over this node's transfer connections in the last ten minutes.
func (n *Node) Traffic() report.Traffic { return n.port.counters.traffic.report(time.Now()) }

// Describe is what this node knows of an announced image, as far as it holds the seed index.
func (n *Node) Describe(ctx context.Context, ref string) report.ImageDetail {
	return n.matrix.Describe(ctx, ref)
}
