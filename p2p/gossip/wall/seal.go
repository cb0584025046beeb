package wall

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
)

const (
	// sealVersion is the first byte of a packet. It is in the additional data: a
	// packet whose version was changed on the way does not open.
	sealVersion = 1
	// label separates seeder's packets from those of another program that derives its
	// keys in the same way.
	label = "seeder-gossip-packet"
	// The nonce is random: with one key for all members, 2^32 packets (NIST SP
	// 800-38D, 8.3) have one chance in 2^33 of two equal nonces.
	nonceBytes, tagBytes = 12, 16
	// sealOverhead is what sealing adds to a packet.
	sealOverhead = 1 + nonceBytes + tagBytes
	keyBytes     = 32
)

// errUnsealed is the error for a packet that no accepted key opens.
var errUnsealed = errors.New("no accepted secret opens the packet")

// sealer seals and opens gossip's packets: version (1 byte), nonce (12), AES-256-GCM
// of the message with its tag (16). The additional data are the version and the
// label. It is safe for concurrent use.
type sealer struct {
	keys atomic.Pointer[[]cipher.AEAD]
}

// set replaces the keys, 32 bytes each: the first seals, all open.
func (s *sealer) set(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip needs a key")
	}
	out := make([]cipher.AEAD, len(keys))
	for i, k := range keys {
		if len(k) != keyBytes {
			return fmt.Errorf("gossip key %d has %d bytes, want %d", i+1, len(k), keyBytes)
		}
		block, err := aes.NewCipher(k)
		if err != nil {
			return fmt.Errorf("gossip key %d: %w", i+1, err)
		}
		if out[i], err = cipher.NewGCM(block); err != nil {
			return fmt.Errorf("gossip key %d: %w", i+1, err)
		}
	}
	s.keys.Store(&out)
	return nil
}

var additional = append([]byte{sealVersion}, label...)

// seal returns msg as a packet.
func (s *sealer) seal(msg []byte) []byte {
	out := make([]byte, 1+nonceBytes, sealOverhead+len(msg))
	out[0] = sealVersion
	rand.Read(out[1:]) // never fails (crypto/rand since Go 1.24)
	return (*s.keys.Load())[0].Seal(out, out[1:], msg, additional)
}

// open returns the message in a packet, in memory of its own.
func (s *sealer) open(packet []byte) ([]byte, error) {
	if len(packet) < sealOverhead || packet[0] != sealVersion {
		return nil, errUnsealed
	}
	nonce, sealed := packet[1:1+nonceBytes], packet[1+nonceBytes:]
	for _, key := range *s.keys.Load() {
		if msg, err := key.Open(nil, nonce, sealed, additional); err == nil {
			return msg, nil
		}
	}
	return nil, errUnsealed
}
