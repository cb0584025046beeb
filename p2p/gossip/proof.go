package gossip

import (
	"crypto/ed25519"
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/hashicorp/memberlist"

	"seeder/p2p/gossip/wall"
	"seeder/p2p/trust"
)

// A node signs what it says of itself, for one instance at one address: gossip is passed on
// by others, and a member could claim another one's metadata, a newer instance of it, or
// one elsewhere. A signature is looked at only where somebody's place is at stake: where two
// instances have one name or one identity, or what is told of an instance changes. So a
// cluster that comes up costs none, and a claim costs one for each time that it is made.

// proofDomain separates these signatures from those of announcements.
const proofDomain = "seeder gossip metadata v1"

// The proof stands behind the metadata: a zero byte, which JSON never has, the public key (32
// bytes), from which the id follows, and its signature (64). Hints wait behind what gossip
// tells of members when many start at once, so it is short: in base64, beside the id, 200
// nodes that started at once took more than 30 s for the first one.
const (
	proofBytes  = ed25519.PublicKeySize + ed25519.SignatureSize
	proofSuffix = 1 + proofBytes
)

// splitMeta cuts metadata into the JSON and the proof, nil where there is none.
func splitMeta(meta []byte) (text, proof []byte) {
	if n := len(meta) - proofSuffix; n >= 0 && meta[n] == 0 {
		return meta[:n], meta[n+1:]
	}
	return meta, nil
}

// proven is what was found out of the proof in an instance's metadata.
type proven byte

const (
	unlooked proven = iota
	genuine
	forged
)

// signMeta puts the proof behind encoded metadata of an instance at an address.
func signMeta(meta []byte, of instance, at netip.AddrPort, id *trust.Identity) []byte {
	sig := id.Sign(proofDomain, proofPayload(meta, of.String(), at))
	return slices.Concat(meta, []byte{0}, id.Public(), sig)
}

// verifyMeta reports whether the owner of the identity that metadata names says it of an
// instance at an address.
func verifyMeta(meta []byte, of string, at netip.AddrPort) bool {
	text, proof := splitMeta(meta)
	return proof != nil && trust.Verify(proof[:ed25519.PublicKeySize], proofDomain, proofPayload(text, of, at), proof[ed25519.PublicKeySize:])
}

// proofPayload is what is signed: the instance, its address and the metadata without the
// proof, with a zero byte between them, which neither of the first two has.
func proofPayload(meta []byte, of string, at netip.AddrPort) []byte {
	b := append([]byte(of), 0)
	b = append(append(b, at.String()...), 0)
	return append(b, meta...)
}

// addressOf is where memberlist has a member.
func addressOf(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// claimedID is the identity that metadata names, also that of a protocol that this node does
// not speak; empty where it names none.
func claimedID(meta []byte) trust.NodeID {
	text, proof := splitMeta(meta)
	if proof != nil {
		return trust.IDOf(proof[:ed25519.PublicKeySize])
	}
	var m struct {
		ID trust.NodeID `json:"id"`
	}
	if len(meta) > wall.MaxMetaBytes || json.Unmarshal(text, &m) != nil {
		return ""
	}
	if _, err := trust.ParseNodeID(string(m.ID)); err != nil {
		return ""
	}
	return m.ID
}

// genuine reports whether the node that m names says itself what m is.
func (m *Member) genuine() bool {
	if m.proven == unlooked {
		m.proven = forged
		if at, err := netip.ParseAddrPort(m.gossip); err == nil && verifyMeta([]byte(m.told), m.instance.String(), netip.AddrPortFrom(at.Addr().Unmap(), at.Port())) {
			m.proven = genuine
		}
	}
	return m.proven == genuine
}

// onlyGenuine leaves out what the nodes do not say themselves, where one of them does: the
// rest is made up.
func onlyGenuine(list []*Member) []*Member {
	var out []*Member
	if len(list) < 2 {
		return list
	}
	for _, m := range list {
		if m.genuine() {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		return list
	}
	return out
}

// atStakeLocked reports whether an instance that is told of touches the place of another
// one, or what is known of it. mu is held.
func (ms *members) atStakeLocked(n *memberlist.Node, i instance, id trust.NodeID) bool {
	if known := ms.alive[i]; known != nil {
		return known.told != string(n.Meta) || known.gossip != n.Address()
	}
	return ms.byName[i.node] != nil || id != "" && ms.ids[id] > 0
}
