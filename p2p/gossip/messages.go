package gossip

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/opencontainers/go-digest"

	"seeder/internal/text"
	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

const (
	// maxHintBytes keeps a hint small: a cluster of 1,000 carries about 13
	// messages of 100 bytes a second in all.
	maxHintBytes = 200
)

// Meta is what a node says of itself to every member.
type Meta struct {
	ID              trust.NodeID `json:"id,omitempty"` // left out where a proof has it, see proof.go
	TransferAddress string       `json:"t"`            // host:port; an empty host stands for the gossip address
	Protocol        uint8        `json:"p"`            // the newest that it speaks, see Protocols
	Oldest          uint8        `json:"o,omitempty"`  // the oldest; 0: it speaks one only
	Version         string       `json:"v"`            // of the program
	Leaving         bool         `json:"l,omitempty"`  // tells a farewell from a failure
	Second          bool         `json:"s,omitempty"`  // another host has the name or the identity, and had it first
}

// Protocols are the versions that a build speaks of what nodes say to each other:
// the metadata and messages of gossip, the catalog's records, and the paths and
// encodings of the transfer port. Two nodes that have one in common use the newest
// such; others know of each other and leave each other alone.
//
// Within a protocol nothing changes its meaning, but something may be added:
// unknown fields, kinds of messages and kinds of haves are passed over. A change
// that the nodes of today would misread is a new protocol; the build that brings
// it speaks the old one, too, for as long as clusters are to be upgraded host by
// host.
type Protocols struct{ Oldest, Newest uint8 }

// Speaks reports whether both have a protocol in common.
func (p Protocols) Speaks(o Protocols) bool { return p.Oldest <= o.Newest && o.Oldest <= p.Newest }

// String is for people.
func (p Protocols) String() string {
	if p.Oldest == p.Newest {
		return strconv.Itoa(int(p.Newest))
	}
	return fmt.Sprintf("%d to %d", p.Oldest, p.Newest)
}

// protocols are those that the node says it speaks.
func (m Meta) protocols() Protocols {
	if m.Oldest == 0 {
		return Protocols{m.Protocol, m.Protocol}
	}
	return Protocols{m.Oldest, m.Protocol}
}

// spoken are the protocols that metadata b names. It reads no more of b than it needs:
// another protocol may mean something else by the rest.
func spoken(b []byte) (p Protocols, ok bool) {
	var m struct {
		Protocol uint8 `json:"p"`
		Oldest   uint8 `json:"o"`
	}
	body, _ := splitMeta(b)
	if len(b) > wall.MaxMetaBytes || json.Unmarshal(body, &m) != nil {
		return Protocols{}, false // of no protocol at all, which decodeMeta says
	}
	return Meta{Protocol: m.Protocol, Oldest: m.Oldest}.protocols(), true
}

// foreign says why a node that speaks these protocols cannot talk to one with
// metadata b, empty where it can.
func (p Protocols) foreign(b []byte) string {
	theirs, ok := spoken(b)
	if !ok || p.Speaks(theirs) {
		return ""
	}
	return fmt.Sprintf("speaks protocol %s, this node %s: update seeder on the older of the two", theirs, p)
}

func (m Meta) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if limit := wall.MaxMetaBytes - proofSuffix; err == nil && len(b) > limit {
		err = fmt.Errorf("node metadata of %d bytes, at most %d: shorten transfer.advertise", len(b), limit)
	}
	return b, err
}

// decodeMeta reads what another node says of itself.
func decodeMeta(b []byte) (Meta, error) {
	var m Meta
	if len(b) > wall.MaxMetaBytes {
		return m, fmt.Errorf("node metadata of %d bytes, at most %d", len(b), wall.MaxMetaBytes)
	}
	body, _ := splitMeta(b)
	if err := json.Unmarshal(body, &m); err != nil {
		return Meta{}, fmt.Errorf("node metadata: %w", err)
	}
	m.ID = claimedID(b)
	if _, err := trust.ParseNodeID(string(m.ID)); err != nil {
		return Meta{}, fmt.Errorf("node metadata: %w", err)
	}
	_, port, err := net.SplitHostPort(m.TransferAddress)
	if err != nil {
		return Meta{}, fmt.Errorf("node metadata: transfer address: %w", err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return Meta{}, fmt.Errorf("node metadata: transfer address %q has no port", m.TransferAddress)
	}
	if !text.Valid(m.Version, wall.MaxMetaBytes) || !text.Valid(m.TransferAddress, wall.MaxMetaBytes) {
		return Meta{}, errors.New("node metadata has characters that are not printable")
	}
	return m, nil
}

// Hint says that Holder has a record of Reference with that digest and version.
// An empty reference says "pull my catalog": names may be too long for a hint.
type Hint struct {
	Reference string
	Digest    digest.Digest
	Version   uint64
	Holder    string // node name
}

// The first byte of a message; probeKind is another one.
const (
	hintKind    = 1
	summaryKind = 2
	forgetKind  = 4
)

// encode is: kind byte 1, version (uvarint), digest (32 bytes), holder and
// reference, each with its length (uvarint) in front.
func (h Hint) encode() ([]byte, error) {
	if h.Digest.Validate() != nil || h.Digest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("hint: invalid sha256 digest %q", h.Digest)
	}
	with := func(ref string) []byte {
		b := []byte{hintKind}
		b = binary.AppendUvarint(b, h.Version)
		sum, _ := hex.DecodeString(h.Digest.Encoded())
		b = append(b, sum...)
		b = binary.AppendUvarint(b, uint64(len(h.Holder)))
		b = append(b, h.Holder...)
		b = binary.AppendUvarint(b, uint64(len(ref)))
		return append(b, ref...)
	}
	b := with(h.Reference)
	if len(b) > maxHintBytes {
		b = with("")
	}
	if len(b) > maxHintBytes {
		return nil, fmt.Errorf("hint of %d bytes, at most %d: the node name %q is too long", len(b), maxHintBytes, h.Holder)
	}
	return b, nil
}

func decodeHint(b []byte) (Hint, error) {
	var h Hint
	if len(b) > maxHintBytes || len(b) < 1 || b[0] != hintKind {
		return h, fmt.Errorf("hint of %d bytes or of an unknown kind", len(b))
	}
	b = b[1:]
	v, n := binary.Uvarint(b)
	if n <= 0 || len(b) < n+32 {
		return h, errors.New("hint is cut off")
	}
	h.Version = v
	h.Digest = digest.NewDigestFromBytes(digest.SHA256, b[n:n+32])
	b = b[n+32:]
	var ok bool
	if h.Holder, b, ok = cutString(b); !ok || !wall.ValidName(h.Holder) {
		return Hint{}, errors.New("hint has no holder")
	}
	if h.Reference, b, ok = cutString(b); !ok || len(b) != 0 || !text.Valid(h.Reference, maxHintBytes) {
		return Hint{}, errors.New("hint has no reference, or more than one")
	}
	return h, nil
}

// cutString takes a string with its length in front off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return "", nil, false
	}
	return string(b[n : n+int(size)]), b[n+int(size):], true
}

// state is what two nodes tell each other in a push/pull exchange, and one the
// other now and then besides: a summary of the catalog, never a list.
type state struct {
	Name string `json:"n"`
	Hash uint64 `json:"h"`
	// In an exchange of states alone:
	Away []away     `json:"a,omitempty"` // members that died
	Left []farewell `json:"l,omitempty"` // members that left
}

func decodeState(b []byte, limit int) (state, error) {
	var s state
	if len(b) > limit {
		return s, fmt.Errorf("catalog summary of %d bytes, at most %d", len(b), limit)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("catalog summary: %w", err)
	}
	if !wall.ValidName(s.Name) {
		return state{}, errors.New("catalog summary without a node name")
	}
	return s, nil
}
