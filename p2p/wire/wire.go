// Package wire carries what nodes say to each other on the transfer port:
// HTTP/1.1 over mutual TLS 1.3. There is no mode without.
//
// It owns the paths, the encodings, the bounds of every request and answer, the
// rate limits, and the connections. It never decides which peer or which chunk,
// and never keeps a byte of an image.
//
// Invariant: nothing is allocated for a peer before its length was checked
// against a bound named here, and no request waits for a silent peer forever.
//
// HTTP/1.1 with one keep-alive connection for each request in flight costs half
// the CPU of HTTP/2 or gRPC for bulk bytes.
//
//	GET  /v1/state?ref=…                 → JSON: the node's column of the matrix
//	POST /v1/catalog                     body: catalog summary → records, each with its length (uvarint) in front
//	GET  /v1/seeds/{digest}              → seed index
//	POST /v1/swarms/{seed}/peers         JSON registration → JSON peers
//	GET  /v1/swarms/{seed}/haves         → stream of messages, see haves.go
//	GET  /v1/swarms/{seed}/chunks/{n}    → frame of chunk n
//	POST /v1/swarms/{seed}/chunks        body: wanted chunks as a bitmap, padded to 64 chunks → frame of one of them
//	POST /v1/swarms/{seed}/deltas?make=1 body: digests of layers → JSON offers, see deltas.go
//	POST /v1/echo?bytes=n                body: up to 16 KiB of anything → n zero bytes, at most as many
//	POST /v1/probe                       JSON nonce → JSON: whether the asker's own ports are reached from here
//	GET  /v1/held?ref=…                  → JSON: which of up to 64 references the store has
//
// The last three are doctor's (probe.go); nodes before them answer 404, which says
// so, as nodes without deltas do. An echo's answer has the header Seeder-Clock, in nanoseconds since 1970.
//
// This is protocol 1; the paths of another one begin with its number. Anything else
// is answered with 404, which is how a probe learns that both sides accept each
// other. Nodes without a common protocol do not ask (gossip.Protocols).
//
// A frame's answer has Content-Length and the headers Seeder-Chunk (its number)
// and Seeder-Encoding (raw or zstd). Refusals are 404 not held, 204 nothing of
// it here, 409 enough requesters already, 503 busy with Seeder-Retry-After-Ms.
package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/text"
	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// The bounds of what travels.
const (
	MaxStateBytes   = 16 << 20
	MaxCatalogBytes = 16 << 20
	MaxSeedBytes    = chunk.MaxIndexBytes
	maxPeersBytes   = 64 << 10
	maxPeers        = 32
	maxNameBytes    = 128
	maxAddressBytes = 300
	maxHeaderBytes  = 64 << 10
	// maxQueryBytes keeps a question for many references within the header's
	// bound: beyond it all are asked for.
	maxQueryBytes = 32 << 10
)

const (
	headerChunk    = "Seeder-Chunk"
	headerEncoding = "Seeder-Encoding"
	headerRetry    = "Seeder-Retry-After-Ms"

	minRetryAfter = time.Millisecond
	maxRetryAfter = 10 * time.Second

	keepAlive  = 5 * time.Second
	maxSilence = 15 * time.Second

	// bulkBuffer is what a chunk is copied with: larger buffers gain nothing,
	// smaller ones cost system calls.
	bulkBuffer = 256 << 10
)

// encodingName maps encodings to their names in the header.
var encodingName = map[chunk.Encoding]string{chunk.Raw: "raw", chunk.Zstd: "zstd"}

func parseEncoding(s string) (chunk.Encoding, error) {
	for enc, name := range encodingName {
		if name == s {
			return enc, nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q", headerEncoding, s)
}

// parseDigest accepts only SHA-256, the one digest of seeds.
func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("invalid sha256 digest %q", s)
	}
	return d, nil
}

// parseChunk accepts decimal numbers in their shortest form below MaxChunks.
func parseChunk(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n >= chunk.MaxChunks || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("invalid chunk number %q", s)
	}
	return n, nil
}

// peerJSON is a peer in registrations and answers to them.
type peerJSON struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Complete bool   `json:"complete"`
}

type peersJSON struct {
	Peers []peerJSON `json:"peers"`
}

func (p peerJSON) peer() (swarm.Peer, error) {
	if p.Name == "" || !text.Valid(p.Name, maxNameBytes) {
		return swarm.Peer{}, errors.New("peer without a valid name")
	}
	if err := checkAddress(p.Address); err != nil {
		return swarm.Peer{}, fmt.Errorf("peer %s: %w", p.Name, err)
	}
	return swarm.Peer{Name: p.Name, Address: p.Address, Complete: p.Complete}, nil
}

// decodePeer reads a registration.
func decodePeer(b []byte) (swarm.Peer, error) {
	var p peerJSON
	if err := json.Unmarshal(b, &p); err != nil {
		return swarm.Peer{}, fmt.Errorf("registration: %w", err)
	}
	return p.peer()
}

// decodePeers reads the answer to a registration.
func decodePeers(b []byte) ([]swarm.Peer, error) {
	var in peersJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	if len(in.Peers) > maxPeers {
		return nil, fmt.Errorf("%d peers, at most %d", len(in.Peers), maxPeers)
	}
	var out []swarm.Peer
	for _, p := range in.Peers {
		peer, err := p.peer()
		if err != nil {
			return nil, err
		}
		out = append(out, peer)
	}
	return out, nil
}

func encodePeers(peers []swarm.Peer) ([]byte, error) {
	out := peersJSON{Peers: []peerJSON{}}
	for _, p := range peers[:min(len(peers), maxPeers)] {
		out.Peers = append(out.Peers, peerJSON(p))
	}
	return json.Marshal(out)
}

// checkAddress checks the form host:port.
func checkAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || !text.Valid(addr, maxAddressBytes) || strings.ContainsAny(host, " /?#@") {
		return fmt.Errorf("invalid address %q: want host:port", addr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("invalid address %q: want a port between 1 and 65535", addr)
	}
	return nil
}

// decodeRecords reads the answer of /v1/catalog. Records that do not decode are
// counted and left out: one bad record must not keep the good ones away.
func decodeRecords(b []byte) (records []catalog.Record, bad int, err error) {
	for len(b) > 0 {
		size, n := uvarint(b)
		if n <= 0 || size > catalog.MaxRecordBytes || size > uint64(len(b)-n) {
			return records, bad, errors.New("records: cut off or too long")
		}
		rec, err := catalog.Decode(b[n : n+int(size)])
		if err != nil {
			bad++
		} else {
			records = append(records, rec)
		}
		b = b[n+int(size):]
	}
	return records, bad, nil
}
