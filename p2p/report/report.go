// Package report is what a node says of itself and of its cluster, as plain data: the
// stable JSON of `seeder images`, `status` and `members`, events, counts, and what
// doctor asks for. Some of it travels in the node-to-node state request behind the
// matrix.
//
// It owns the words and their JSON tags and nothing that happens: it imports nothing of
// seeder, so that what shows a cluster need not know how a node works. Invariant: every
// size is in bytes, and every state but ready carries a reason.
package report

import (
	"time"
)

// MaxTextBytes bounds a text of another node that is kept or shown: a reason, a label.
const MaxTextBytes = 512

// State is how far one node is with one announcement.
type State string

// The states of a node for one announcement. Every state but ready carries a
// reason.
const (
	Waiting     State = "waiting"     // known, not begun: queued, backing off, containerd away
	Fetching    State = "fetching"    // chunks are arriving
	Importing   State = "importing"   // all chunks are here, not yet visible to the kubelet
	Ready       State = "ready"       // complete, unpacked, named; CRI answers for it where there is one
	Failed      State = "failed"      // the last try failed; it is tried again
	Excluded    State = "excluded"    // this node should not hold it
	Unreachable State = "unreachable" // a member that did not answer
)

// NodeState is one cell of the matrix. Bytes are those of chunks as stored, but for
// WireBytes. What it says of sources, wire and sent bytes is about this version, since
// the node started: over all tries, kept when the node is ready.
type NodeState struct {
	Name               string   `json:"name"`
	State              State    `json:"state"`
	DoneBytes          int64    `json:"done_bytes"`
	TotalBytes         int64    `json:"total_bytes"`
	Reason             string   `json:"reason"`
	RateBytesPerSecond int64    `json:"rate_bytes_per_second,omitempty"` // from peers, of late; while fetching
	Sources            []Source `json:"sources,omitempty"`               // where the done bytes came from; none: it had the image, or forgot
	WireBytes          int64    `json:"wire_bytes,omitempty"`            // that came for it, as frames, duplicates too
	SentBytes          int64    `json:"sent_bytes,omitempty"`            // that peers got from this node
	TookMS             int64    `json:"took_ms,omitempty"`               // until it was ready, since the node heard of it; 0: nothing was fetched, or it forgot
	FreedBytes         int64    `json:"freed_bytes,omitempty"`           // of disk, by the purge of a withdrawn image, frames too
	Rebuilt

	// Blocked is why the kubelet there refuses to start a container of the image although
	// it is ready, and what to run there.
	Blocked string `json:"blocked,omitempty"`

	Away  bool      `json:"away,omitempty"` // it has died: counted, and not waited for
	Since time.Time `json:"since,omitzero"` // since when it is away
}

// Rebuilt is what deltas did for an image on a node.
type Rebuilt struct {
	RebuiltBytes int64  `json:"rebuilt_bytes,omitempty"` // of layers that were made here from others, by deltas
	DeltaBytes   int64  `json:"delta_bytes,omitempty"`   // of what came over the wire, those of deltas
	NoDelta      string `json:"no_delta,omitempty"`      // why a layer did not come as a delta, as far as that is known
}

// Source is where bytes of an image came from: a peer, by its name, LocalSource,
// DeltaSource or OtherSources.
type Source struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"` // of chunks as stored
}

// The names in a Source that are not a peer's.
const (
	// LocalSource is the name of what was not fetched because this host had it.
	LocalSource = "local"
	// DeltaSource is the name of the layers that this host rebuilt from others by deltas.
	DeltaSource = "delta"
	// OtherSources is the name of all peers together that gave less than those that are
	// named.
	OtherSources = "others"
)

// ImageState is one row of the matrix: an announcement and its convergence.
type ImageState struct {
	Reference   string      `json:"ref"`
	Digest      string      `json:"digest"`
	Version     uint64      `json:"version"`
	Size        int64       `json:"size"`  // bytes of all blobs as stored
	State       string      `json:"state"` // announced | withdrawn
	AnnouncedBy string      `json:"announced_by"`
	AnnouncedAt time.Time   `json:"announced_at"`
	On          []string    `json:"on,omitempty"` // label selectors of the nodes it is for; none: every node
	Nodes       []NodeState `json:"nodes"`
	Ready       int         `json:"ready"`          // nodes that are ready
	Total       int         `json:"total"`          // nodes that are meant to hold it, those that are away too
	Away        int         `json:"away,omitempty"` // of them, those that have died
}

// Settled reports whether every node that is there and meant to hold the image is ready.
func (i ImageState) Settled() bool { return i.Ready >= i.Total-i.Away }

// Everywhere reports whether every node that is meant to hold the image is ready, and
// none is away.
func (i ImageState) Everywhere() bool { return i.Ready >= i.Total }

// Images is `seeder images -o json`.
type Images struct {
	Images []ImageState `json:"images"`
}

// MemberState is one member of the cluster.
type MemberState struct {
	Name    string `json:"name"`
	Address string `json:"address"`          // transfer address, host:port
	State   string `json:"state"`            // alive | suspect | dead | left
	Reason  string `json:"reason,omitempty"` // why this node cannot talk to it
	Version string `json:"version"`
	ID      string `json:"id"`
	// Labels are those of its configuration, as it said when it was asked last.
	Labels map[string]string `json:"labels,omitempty"`
	// Since is when it came into this state, as far as this node saw: a member that was
	// dead before this node was started, when this node heard of it last.
	Since time.Time `json:"since,omitzero"`
	// Host is what it said of its host when it was asked last; nil: it has not been asked.
	Host *Host `json:"host,omitempty"`
}

// Host is what a node says of its host.
type Host struct {
	Containerd string `json:"containerd,omitempty"` // its version
	// ContainerdAway is why containerd does not answer, empty while it does.
	ContainerdAway string `json:"containerd_away,omitempty"`
	FreeBytes      int64  `json:"free_bytes"` // of the file system of data_dir
	DiskBytes      int64  `json:"disk_bytes"` // all of it
}

// Members is `seeder members -o json`.
type Members struct {
	Node    string        `json:"node"` // the name of the node that was asked
	Members []MemberState `json:"members"`
}

// Transfer is an image on its way to this node.
type Transfer struct {
	Reference          string   `json:"ref"`
	Digest             string   `json:"digest"`
	State              State    `json:"state"`
	DoneBytes          int64    `json:"done_bytes"`
	TotalBytes         int64    `json:"total_bytes"`
	Peers              []string `json:"peers"` // names of the peers that bytes came from
	RateBytesPerSecond int64    `json:"rate_bytes_per_second,omitempty"`
	Sources            []Source `json:"sources,omitempty"`
}

// Status is `seeder status -o json`.
type Status struct {
	Node       string           `json:"node"`
	ID         string           `json:"id"`
	Version    string           `json:"version"`
	Containerd ContainerdStatus `json:"containerd"`
	Join       JoinStatus       `json:"join"`
	// Conflicts are hosts that cannot be told apart: they have one name or one identity.
	Conflicts []Conflict `json:"conflicts,omitempty"`
	Members   int        `json:"members"` // alive, this node among them
	Converged bool       `json:"converged"`
	Images    ImageCount `json:"images"`
	Transfers []Transfer `json:"transfers"`
	// NoDeltas are the images of which a layer came whole, as far as this node remembers.
	NoDeltas []NoDelta  `json:"no_deltas,omitempty"`
	Disk     DiskStatus `json:"disk"`
}

// NoDelta is an image of which a layer came whole to this node, and why.
type NoDelta struct {
	Reference string `json:"ref"`
	Reason    string `json:"reason"`
	Failed    bool   `json:"failed,omitempty"` // a delta was taken and was of no use
}

// ContainerdStatus is the health of this host's containerd.
type ContainerdStatus struct {
	Address string `json:"address"`
	Version string `json:"version"`
	OK      bool   `json:"ok"`
	Reason  string `json:"reason,omitempty"` // why not OK
	// Since is when it began to answer, or stopped.
	Since time.Time `json:"since,omitzero"`
}

// JoinStatus is how this node is with the cluster that it is meant to be in.
type JoinStatus struct {
	OK      bool      `json:"ok"`                // others are there, or there is nobody to join
	Refused bool      `json:"refused,omitempty"` // it is kept out: the secrets differ
	Reason  string    `json:"reason,omitempty"`  // why not OK
	Since   time.Time `json:"since,omitzero"`
}

// ImageCount counts announced images on this node.
type ImageCount struct {
	Ready  int `json:"ready"`
	Failed int `json:"failed"`
	Total  int `json:"total"`
}

// DiskStatus is the file system of data_dir.
type DiskStatus struct {
	FreeBytes       int64 `json:"free_bytes"`
	CacheBytes      int64 `json:"cache_bytes"`       // frames kept for peers; they give way to everything else
	CacheLimitBytes int64 `json:"cache_limit_bytes"` // what they may take now
}
