package report

import "time"

// What a way carries.
const (
	WayTransfer      = "transfer"       // the transfer port, tcp
	WayGossipUDP     = "gossip-udp"     // the gossip port, udp
	WayLargeTransfer = "large-transfer" // full packets on the transfer port
	WayLargeGossip   = "large-gossip"   // full packets of gossip
)

// The states of a way.
const (
	WayOpen    = "open"
	WayClosed  = "closed"
	WayUnknown = "unknown" // could not be tried
)

// Way is one direction between this node and a member.
type Way struct {
	What  string `json:"what"`
	Out   bool   `json:"out"` // from this node to the member; else from the member to this one
	State string `json:"state"`
	Why   string `json:"why,omitempty"` // it is not open
}

// MemberReport is what this node finds out about a member.
type MemberReport struct {
	Name     string `json:"name"`
	Transfer string `json:"transfer"` // its transfer address, host:port
	Gossip   string `json:"gossip"`   // its gossip address, ip:port
	State    string `json:"state"`
	Reason   string `json:"reason,omitempty"` // why this node does not talk to it
	Fix      string `json:"fix,omitempty"`    // what to do about that
	Version  string `json:"version"`
	// Protocols are those that it speaks, as "1" or "1 to 2"; empty: it has not said.
	Protocols string  `json:"protocols,omitempty"`
	Differs   bool    `json:"differs,omitempty"` // its secret is another one
	Policy    *Policy `json:"policy,omitempty"`  // nil: it has not said
	Ways      []Way   `json:"ways,omitempty"`
	Clock     *Clock  `json:"clock,omitempty"`
}

// Clock is how a member's clock compares with this host's.
type Clock struct {
	AheadMS int64 `json:"ahead_ms"`
	TripMS  int64 `json:"trip_ms"` // AheadMS is right to half of it
}

// Diagnosis is what a node knows of its connections.
type Diagnosis struct {
	Node      string         `json:"node"`
	Gossip    string         `json:"gossip"`   // this node's gossip address, as the members know it
	Transfer  string         `json:"transfer"` // this node's transfer address
	Alone     string         `json:"alone,omitempty"`
	NoAddress string         `json:"no_address,omitempty"` // why this host has none that others reach
	Conflicts []Conflict     `json:"conflicts,omitempty"`  // hosts that cannot be told apart
	Members   []MemberReport `json:"members"`
	Strangers []Stranger     `json:"strangers"` // hosts that tried to connect with another secret
	Policy    Policy         `json:"policy"`    // this node's
	Protocols string         `json:"protocols"` // this node's
	// NeverReached counts alive members that have answered this node nothing yet. Of
	// many of them Members has some.
	NeverReached int `json:"never_reached"`
}

// Stranger is a host that tried to connect with another secret.
type Stranger struct {
	Host string    `json:"host"` // its IP address
	At   time.Time `json:"at"`   // when it last did
}

// Policy is what a node's configuration lets it take and send, as far as hosts should
// agree on it or know it of each other.
type Policy struct {
	Announcers    []string `json:"announcers,omitempty"` // sorted; those that are excluded with a ! in front
	Accept        []string `json:"accept,omitempty"`     // patterns; none: everything
	UploadLimit   int64    `json:"upload_limit,omitempty"`
	DownloadLimit int64    `json:"download_limit,omitempty"`
}
