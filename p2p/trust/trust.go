// Package trust says who may take part and who said what.
//
// It owns the cluster secret and what is derived from it (gossip keys, the
// cluster CA), a node's identity (an ed25519 key in data_dir), the TLS
// configuration of the transfer port, and signatures. It never opens a socket
// and never decides what an announcement means.
//
// Invariant: without one of the secrets nobody gets past the TLS handshake in
// either direction, and who does has proved its node id.
//
// What may be guessed is stretched by scrypt first (stretch.go). Each use derives its
// own key by HKDF-SHA-256 (RFC 5869) with its own label, so
// that no derived key says anything of another one or of the secret.
package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Secret is what keys are derived from: what the hosts of one cluster share, stretched
// where it may be guessed.
type Secret []byte

// Secrets are the secrets in use: the first is used, all are accepted, which
// is how a running cluster moves from one to the next.
type Secrets []Secret

const (
	// MinSecretBytes is the least length of a secret. 16 bytes of a generated
	// secret are beyond guessing; a password of that length is at least no word.
	MinSecretBytes = 16
	// maxSecrets bounds a secret file: two are enough for a rotation.
	maxSecrets = 8
)

// ErrNoSecret is returned for a secret file without a secret.
var ErrNoSecret = errors.New("no secret in it; make one with `seeder secret generate`")

// ParseSecrets reads a secret file, as Stretcher.Parse does, and remembers nothing.
func ParseSecrets(data []byte) (Secrets, error) { return new(Stretcher).Parse(data) }

// Parse reads a secret file: one secret a line, blank lines and lines that begin with
// # aside, surrounding white space cut. A byte order mark and quotes around a secret
// are refused: other hosts would read the same file otherwise, or the same secret
// without them.
func (s *Stretcher) Parse(data []byte) (Secrets, error) {
	lines, err := secretLines(data)
	if err != nil {
		return nil, err
	}
	var out Secrets
	for _, line := range lines {
		secret, err := s.secret(line)
		if err != nil {
			return nil, err
		}
		out = append(out, secret)
	}
	return out, nil
}

// secretLines are the secrets in a file as they are written there, at least one.
func secretLines(data []byte) (out [][]byte, _ error) {
	if why := misread(data); why != "" {
		return nil, errors.New(why)
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if quoted(line) {
			return nil, fmt.Errorf("the secret in line %d has quotes around it, which would be part of it; remove them", i+1)
		}
		if len(line) < MinSecretBytes {
			return nil, fmt.Errorf("the secret in line %d has %d bytes, at least %d are needed; make one with `seeder secret generate`", i+1, len(line), MinSecretBytes)
		}
		if len(out) == maxSecrets {
			return nil, fmt.Errorf("more than %d secrets; keep the one in use and those being rotated", maxSecrets)
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, ErrNoSecret
	}
	return out, nil
}

// Has reports whether all secrets of other are among s: a cluster that moves from
// other to s loses nobody's right to be in it.
func (s Secrets) Has(other Secrets) bool {
	for _, o := range other {
		if !slices.ContainsFunc(s, func(x Secret) bool { return bytes.Equal(x, o) }) {
			return false
		}
	}
	return true
}

// Equal reports whether both are the same secrets in the same order.
func (s Secrets) Equal(other Secrets) bool {
	return slices.EqualFunc(s, other, func(a, b Secret) bool { return bytes.Equal(a, b) })
}

// GenerateSecret returns a new secret: 32 random bytes as text.
func GenerateSecret() string {
	b := make([]byte, generatedBytes)
	rand.Read(b) // never fails (crypto/rand since Go 1.24)
	return base64.RawURLEncoding.EncodeToString(b)
}

// derive is HKDF-SHA-256 with a label of this package's own.
func (s Secret) derive(label string, size int) []byte {
	key, err := hkdf.Key(sha256.New, s, []byte("seeder v1"), "seeder "+label+" v1", size)
	if err != nil {
		panic("trust: " + err.Error()) // only for sizes beyond 255 hashes
	}
	return key
}

// GossipKeys are the keys of the gossip keyring, 32 bytes each (AES-256-GCM),
// the one to encrypt with first.
func (s Secrets) GossipKeys() [][]byte {
	var keys [][]byte
	for _, secret := range s {
		keys = append(keys, secret.derive("gossip", 32))
	}
	return keys
}

// NodeID names a node's identity: the first 20 bytes of the SHA-256 of its
// public key in lower-case base32, 32 characters. 160 bits leave no hope for a
// second key with the same id.
type NodeID string

const idBytes = 20

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// IDOf is the id of a public key.
func IDOf(public ed25519.PublicKey) NodeID {
	sum := sha256.Sum256(public)
	return NodeID(strings.ToLower(idEncoding.EncodeToString(sum[:idBytes])))
}

// ParseNodeID checks the form of an id.
func ParseNodeID(s string) (NodeID, error) {
	b, err := idEncoding.DecodeString(strings.ToUpper(s))
	if err != nil || len(b) != idBytes || strings.ToLower(idEncoding.EncodeToString(b)) != s {
		return "", fmt.Errorf("invalid node id %q: want 32 characters of a-z and 2-7, as `seeder status` shows it", s)
	}
	return NodeID(s), nil
}
