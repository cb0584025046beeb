package p2p

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"seeder/internal/pattern"
	"seeder/p2p/announce"
	"seeder/p2p/converge"
	"seeder/p2p/fetch"
	"seeder/p2p/gossip"
	"seeder/p2p/images"
	"seeder/p2p/netaddr"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// Store is this host's images as the node sees them. It is safe for concurrent
// use. Errors wrap fs.ErrNotExist where a thing is not there.
type Store interface {
	converge.Store
	converge.Keeper
	converge.Remover
	images.Store
	announce.Store
	Keeper
}

// Deltas makes and keeps deltas of layers (package fetch, images.Config.Offers).
type Deltas interface {
	fetch.Deltas
	// Offers are the deltas that this host has, or with make makes, of layers of the image
	// of seed, for a host that has bases. changed is closed when one that is pending is
	// not any more.
	Offers(ctx context.Context, seed digest.Digest, bases []digest.Digest, make bool) (offers []chunk.Offer, changed <-chan struct{}, err error)
}

// deltas are the deltas that are offered, and those that are used: nil where they are off, and
// no interfaces with a nil in them.
func (c Config) deltas() (images.Offers, fetch.Deltas) {
	if c.Deltas == nil {
		return nil, nil
	}
	return c.Deltas.Offers, c.Deltas
}

// Keeper looks after the image store as a whole.
type Keeper interface {
	// Tidy removes what work that will not go on has left behind, but nothing of
	// the images whose seed indexes and targets are given.
	Tidy(ctx context.Context, seeds, targets []digest.Digest) error
	// Cache says how many bytes are kept for peers, and how many may be.
	Cache() (heldBytes, limitBytes int64)
	// Health asks whether the image store answers.
	Health(ctx context.Context) (address, version string, err error)
}

// What a Store and those who announce speak of.
type (
	// Image is one open image of this host.
	Image = images.Image
	// Prepared is an image of this host that is ready to be announced.
	Prepared = announce.Prepared
	// Options say how an image is announced.
	Options = announce.Options
	// Announced is what is announced now.
	Announced = announce.Announced
)

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
	// Now is this host's clock, by which announcements are dated; nil: time.Now.
	Now func() time.Time

	Secrets    trust.Secrets
	Announcers []trust.NodeID // who may announce; empty: every member
	Excluded   []trust.NodeID // who may not, whatever Announcers says
	Accept     pattern.List   // references this node holds; empty: all
	Labels     map[string]string
	// Blocked says of which images, by reference, this host's kubelet refuses to start a
	// container although they are ready, and what to do about it; nil: of none.
	Blocked func() map[string]string
	// Published is told of each announcement that this node made; nil: nobody is. It must
	// not block.
	Published func(ref string, version uint64)
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

	// Deltas are those of this host; nil: it uses and offers none.
	Deltas Deltas

	UploadLimit   int64 // bytes per second; 0: none
	DownloadLimit int64 // bytes per second; 0: none

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// protocols are those that this build speaks.
var protocols = gossip.Protocols{Oldest: 1, Newest: 1}

// Protocol is what this build speaks, as "1" or "1 to 2".
func Protocol() string { return protocols.String() }
