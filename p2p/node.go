package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"seeder/internal/pattern"
	"seeder/internal/reserve"
	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/gossip"
	"seeder/p2p/netaddr"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
)

// Store is this host's images as the node sees them. It is safe for concurrent
// use. Errors wrap fs.ErrNotExist where a thing is not there.
type Store interface {
	converge.Store
	converge.Keeper
	converge.Remover
	Images
	Preparer
}

// Images are this host's images as they are fetched and served.
type Images interface {
	// SeedIndex returns a seed index that this host keeps.
	SeedIndex(ctx context.Context, seed digest.Digest) ([]byte, error)
	// Image opens the image that a seed index describes, with whatever of it is
	// already here, and keeps the index.
	Image(ctx context.Context, index []byte) (Image, error)
	// Tidy removes what work that will not go on has left behind, but nothing of
	// the images whose seed indexes and targets are given.
	Tidy(ctx context.Context, seeds, targets []digest.Digest) error
	// Cache says how many bytes are kept for peers, and how many may be.
	Cache() (heldBytes, limitBytes int64)
	// Health asks whether the image store answers.
	Health(ctx context.Context) (address, version string, err error)
}

// Preparer makes images of this host ready to be announced.
type Preparer interface {
	// Prepare makes the seed index of what this host has under ref, keeps it, and makes the
	// image here what it will be elsewhere. at is the target that ref is to have, as of an
	// earlier version that is still here; empty: the one that it has. anyPlatform is for
	// every host, whatever platform the image says it is for. What is not here, or not
	// complete, is an error that wraps fs.ErrNotExist.
	Prepare(ctx context.Context, ref string, at digest.Digest, anyPlatform bool) (Prepared, error)
	// Has reports whether this host has target.
	Has(ctx context.Context, target digest.Digest) bool
}

// Image is one open image of this host: what is fetched into and served from.
type Image interface {
	swarm.Chunks
	// Recheck reads chunk n again, whatever was verified before, and reports whether it
	// was damaged here. It is not served any more then, until it is whole again.
	Recheck(ctx context.Context, n int) (damaged bool, err error)
	// Missing lists the wanted blobs that the content store lacks.
	Missing() []digest.Digest
	// Import runs beside the fetch: it takes the chunks in order as they arrive
	// and returns once ref is complete and visible. With all chunks here it
	// repairs whatever Check found lacking.
	Import(ctx context.Context, ref string) error
	// Excluded is why this host is not meant to hold the image, empty where it is.
	Excluded() string
	// Room says why what is missing may not come yet, empty where it may, and how many
	// bytes of disk are lacking; it is asked again a little later.
	Room(ctx context.Context) (why string, lackingBytes int64, err error)
	Close() error
}

// Network is what a node's connections go over where that is not the host's own
// network: for clusters in virtual time (p2ptest).
type Network interface {
	// Listen opens the transfer port. The address of the listener is a *net.TCPAddr.
	Listen(addr string) (net.Listener, error)
	// Dial reaches the transfer port of another node.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
	// ListenPacket opens the gossip port. The address of the socket is a *net.UDPAddr.
	ListenPacket(addr string) (net.PacketConn, error)
}

// Config is what a node is made of. The zero value of a field means its
// documented default only where one is named.
type Config struct {
	Name    string // node name, unique in the cluster
	Version string // of the program, shown to other members
	DataDir string // identity, catalog and known members live here
	Machine string // the id of the machine that the identity is bound to; empty: none

	GossipBind string // host:port
	// Advertise chooses the address at which others reach this node, given those of the
	// members that are known; nil: that of GossipBind. AdvertisePort is the port there; 0:
	// that of GossipBind.
	Advertise     func(ctx context.Context, known []netip.Addr) (netaddr.Choice, error)
	AdvertisePort int
	// Changes wakes up when Advertise may choose another address; nil: it is asked once.
	Changes           func(ctx context.Context) (<-chan struct{}, error)
	TransferBind      string // host:port
	TransferAdvertise string // host[:port]; empty: the gossip address with the transfer port
	Join              func() []string
	Network           Network // nil: this host's

	Secrets    trust.Secrets
	Announcers []trust.NodeID // who may announce; empty: every member
	Excluded   []trust.NodeID // who may not, whatever Announcers says
	Accept     pattern.List   // references this node holds; empty: all
	Labels     map[string]string
	// Blocked says of which images, by reference, this host's kubelet refuses to start a
	// container although they are ready, and what to do about it; nil: of none.
	Blocked func() map[string]string
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

	// Protocols of this node; zero: those of this build. Only tests set others.
	Protocols gossip.Protocols

	UploadLimit   int64 // bytes per second; 0: none
	DownloadLimit int64 // bytes per second; 0: none

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// protocols are those that this build speaks.
var protocols = gossip.Protocols{Oldest: 1, Newest: 1}

// Protocol is what this build speaks, as "1" or "1 to 2".
func Protocol() string { return protocols.String() }

// Node is one running member. New starts nothing; Open acquires and starts;
// Close ends everything and waits.
type Node struct {
	cfg     Config
	store   Store
	log     *slog.Logger
	metrics *metrics

	identity *trust.Identity
	creds    *trust.Credentials
	expired  chan time.Time // connections from before then shall end, capacity 1

	secretsMu sync.Mutex
	secrets   trust.Secrets // in force

	catalog  *catalog.Catalog
	gossip   *gossip.Gossip
	client   *wire.Client
	server   *wire.Server
	listener net.Listener
	limiter  *wire.Limiter
	uploader *swarm.Uploader
	tracker  *swarm.Tracker

	swarms    *swarms
	memory    swarm.Memory // of frames on their way in
	cells     *cells
	freed     freed
	claims    *claims
	loop      *converge.Loop
	syncer    *syncer
	asked     atomic.Int64 // how often others have asked for the catalog
	noteMu    sync.Mutex   // of noteCatalog
	lostSeeds lostSeeds

	health  healthState
	said    memberFacts
	events  events
	beats   beats
	probing probing    // members that are connected back to
	recheck sync.Mutex // held by the one recheck that runs

	cancel context.CancelCauseFunc
	group  *errgroup.Group
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
	n := &Node{
		cfg:     cfg,
		store:   store,
		log:     cfg.Log.With("component", "node"),
		metrics: newMetrics(cfg.Registerer),
		cells:   newCells(),
		claims:  newClaims(),
		limiter: wire.NewLimiter(wire.Limits{}),
		expired: make(chan time.Time, 1),
		secrets: cfg.Secrets,
	}
	n.swarms = newSwarms(n.store)
	n.syncer = newSyncer()
	return n
}

// errClosing is the cause of the context's end when Close is called.
var errClosing = errors.New("node is closing")

// Open loads identity and catalog, listens on both ports, joins the cluster and
// starts to converge. It does not wait for containerd or for other members. What
// it opened is closed again where it fails.
func (n *Node) Open(ctx context.Context) (err error) {
	ctx, n.cancel = context.WithCancelCause(ctx)
	n.group, ctx = errgroup.WithContext(ctx)
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	for _, step := range []func(context.Context) error{
		n.openIdentity, n.openCatalog, n.openLoop, n.openTransfer, n.openGossip, n.serve,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	n.noteCatalog()
	for _, loop := range []string{"converge", "health", "sync"} {
		n.beats.beat(loop) // the time begins before the loop does
	}
	n.start(ctx, "converge", n.loop.Run)
	n.start(ctx, "sync", n.sync)
	n.start(ctx, "pull", n.pull)
	n.start(ctx, "janitor", n.janitor)
	n.start(ctx, "health", n.watchHealth)
	n.start(ctx, "expire", n.expire)
	return nil
}

func (n *Node) openIdentity(context.Context) error {
	path := filepath.Join(n.cfg.DataDir, "identity")
	aside, err := trust.BindIdentity(path, n.cfg.Machine)
	if err != nil {
		return err
	}
	if aside != "" {
		n.log.Warn("made a new identity: data_dir was copied from another machine", "old", aside)
	}
	id, err := trust.LoadOrCreateIdentity(path)
	if err != nil {
		return fmt.Errorf("load this node's identity: %w", err)
	}
	n.identity = id
	return nil
}

func (n *Node) openCatalog(context.Context) error {
	c, err := catalog.Open(catalog.Config{
		Path:  filepath.Join(n.cfg.DataDir, "catalog.db"),
		Allow: n.mayAnnounce,
		Log:   n.cfg.Log.With("component", "catalog"),
	})
	if err != nil {
		return fmt.Errorf("open the catalog: %w", err)
	}
	n.catalog = c
	return nil
}

// openTransfer listens on the transfer port and sets up both directions of it.
func (n *Node) openTransfer(context.Context) error {
	var err error
	if n.creds, err = trust.NewCredentials(n.identity, n.cfg.Secrets); err != nil {
		return fmt.Errorf("make the node's certificate: %w", err)
	}
	n.listener, err = n.listen(n.cfg.TransferBind)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on transfer.bind %s: the port is in use by another process; set transfer.bind to a free port or stop that process (ss -ltnp shows it)", n.cfg.TransferBind)
	}
	if err != nil {
		return fmt.Errorf("listen on transfer.bind %s: %w", n.cfg.TransferBind, err)
	}
	n.uploader = swarm.NewUploader(swarm.UploaderConfig{Sent: n.swarms.addSent})
	n.tracker = swarm.NewTracker(swarm.TrackerConfig{})
	n.swarms.uploader = n.uploader
	n.SetLimits(n.cfg.UploadLimit, n.cfg.DownloadLimit)
	n.client = wire.NewClient(wire.ClientConfig{
		Credentials: n.creds, Limiter: n.limiter, Log: n.cfg.Log.With("component", "wire"),
		Sent: n.metrics.sent, Received: n.metrics.received, DialContext: n.dialer(), Proved: n.proved,
	})
	n.server = wire.NewServer(wire.ServerConfig{
		Credentials: n.creds, Handler: handler{n}, Limiter: n.limiter, Log: n.cfg.Log.With("component", "wire"),
		Sent: n.metrics.sent, Received: n.metrics.received,
		Gossip:  func(c net.Conn) { n.gossip.Serve(c) },
		Strange: func(from net.Addr) { n.gossip.Strange(from) },
		Proved:  n.proved,
	})
	return nil
}

func (n *Node) listen(addr string) (net.Listener, error) {
	if n.cfg.Network != nil {
		return n.cfg.Network.Listen(addr)
	}
	return net.Listen("tcp", addr)
}

// dialer is nil for the host's own.
func (n *Node) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if n.cfg.Network != nil {
		return n.cfg.Network.Dial
	}
	return nil
}

// serve answers on the transfer port, once everything that answers is there.
func (n *Node) serve(ctx context.Context) error {
	n.group.Go(func() error {
		l := n.listener
		if n.cfg.Network == nil { // who connects while there is no descriptor is not left waiting
			l = reserve.Listen(l, nil)
		}
		if err := n.server.Serve(l); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve the transfer port: %w", err)
		}
		return nil
	})
	return nil
}

func (n *Node) openGossip(ctx context.Context) error {
	var listen func(addr string) (net.PacketConn, error)
	if n.cfg.Network != nil {
		listen = n.cfg.Network.ListenPacket
	}
	n.gossip = gossip.New(gossip.Config{
		NodeName:      n.cfg.Name,
		BindAddr:      n.cfg.GossipBind,
		Advertise:     n.cfg.Advertise,
		AdvertisePort: n.cfg.AdvertisePort,
		Changes:       n.cfg.Changes,
		Join:          n.cfg.Join,
		JoinPort:      n.listener.Addr().(*net.TCPAddr).Port,
		Keys:          n.cfg.Secrets.GossipKeys(),
		Meta: gossip.Meta{
			ID:              n.identity.ID(),
			TransferAddress: n.advertised(),
			Protocol:        n.cfg.Protocols.Newest,
			Oldest:          n.cfg.Protocols.Oldest,
			Version:         n.cfg.Version,
		},
		PeersFile: filepath.Join(n.cfg.DataDir, "members.json"),
		Listen:    listen,
		Dial:      n.client.DialGossip,
		Log:       n.cfg.Log.With("component", "gossip"),
		OnHint:    n.onHint,
		OnCatalog: n.onCatalog,
		OnMoved:   n.onMoved,
		OnMember:  n.onMember,
	})
	if err := n.gossip.Open(ctx); err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	return nil
}

// SetLimits changes the limits of all transfers, those that run too. Both are in
// bytes per second, 0 for none.
func (n *Node) SetLimits(upload, download int64) {
	n.limiter.SetLimits(wire.Limits{UploadBytesPerSec: upload, DownloadBytesPerSec: download})
}

// onMoved closes the connections of an address that is not there any more, or not that of
// the node: nothing would come on them until they time out.
func (n *Node) onMoved(member, before string) {
	if member != n.cfg.Name {
		n.client.CloseTo(before)
		return
	}
	now := time.Now()
	n.client.CloseBefore(now)
	n.server.CloseBefore(now)
}

// advertised is the transfer address as other members learn it: with an empty
// host they use the gossip address of this node.
func (n *Node) advertised() string {
	_, port, _ := net.SplitHostPort(n.listener.Addr().String())
	if adv := n.cfg.TransferAdvertise; adv != "" {
		if _, _, err := net.SplitHostPort(adv); err == nil {
			return adv
		}
		return net.JoinHostPort(adv, port)
	}
	host, _, _ := net.SplitHostPort(n.cfg.TransferBind)
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = ""
	}
	return net.JoinHostPort(host, port)
}

// start runs loop in the node's group until ctx ends.
func (n *Node) start(ctx context.Context, name string, loop func(context.Context)) {
	n.group.Go(func() error {
		loop(ctx)
		n.log.Debug("loop ended", "loop", name)
		return nil
	})
}

// answerGrace is what the answers that are being sent have at the end. Whoever
// asked for one that is cut off asks another node.
const answerGrace = 3 * time.Second

// Close leaves the cluster, ends every transfer and waits for all goroutines.
// What was verified stays staged. It may be called more than once.
func (n *Node) Close() error {
	var errs []error
	n.closed.Do(func() {
		if n.cancel != nil {
			n.cancel(errClosing)
		}
		if n.gossip != nil {
			errs = append(errs, n.gossip.Close())
		}
		if n.server != nil {
			ctx, cancel := context.WithTimeout(context.Background(), answerGrace)
			errs = append(errs, n.server.Close(ctx))
			cancel()
		} else if n.listener != nil {
			errs = append(errs, n.listener.Close())
		}
		if n.group != nil {
			errs = append(errs, n.group.Wait())
		}
		n.swarms.close()
		if n.client != nil {
			n.client.Close()
		}
		if n.catalog != nil {
			errs = append(errs, n.catalog.Close())
		}
	})
	return errors.Join(errs...)
}

// Wait blocks until a part of the node fails or Close is called; the error says
// which part.
func (n *Node) Wait() error { return n.group.Wait() }

// ID is this node's identity, as `announcers` lists it.
func (n *Node) ID() trust.NodeID { return n.identity.ID() }

// TransferAddress is where this node listens for transfers, host:port.
func (n *Node) TransferAddress() string { return n.listener.Addr().String() }
