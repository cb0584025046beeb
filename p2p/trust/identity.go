package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"seeder/internal/disk"
)

// Identity is a node's own key. It proves who talks on the transfer port and
// signs the node's announcements.
type Identity struct {
	private ed25519.PrivateKey
}

const pemType = "SEEDER NODE IDENTITY"

// LoadOrCreateIdentity reads the identity at path, or makes one there (mode
// 0600, whole or not at all). A file that is no identity is an error: a new key
// would make the node a stranger, which a person has to decide.
func LoadOrCreateIdentity(path string) (*Identity, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, fix)
	}
	id, err := parseIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("%s %w; %s", path, err, fix)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("keep %s private: %w", path, err)
	}
	// Anyone who made it may have been killed before its name was safe.
	if err := disk.SyncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("keep %s: %w", path, err)
	}
	return id, nil
}

func parseIdentity(b []byte) (*Identity, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(block.Bytes) != ed25519.SeedSize || len(rest) != 0 {
		return nil, errors.New("is damaged or not the identity of a node")
	}
	return &Identity{private: ed25519.NewKeyFromSeed(block.Bytes)}, nil
}

const fix = "restore it, or remove it to give this node a new id (then `announcers` lists that name the old id need the new one)"

func (i *Identity) encode() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: i.private.Seed()})
}

// createIdentity writes a new identity. Of two processes that create at once one
// wins, and both use that one.
func createIdentity(path string) (*Identity, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	id := &Identity{private: private}
	err = disk.CreateFile(path, id.encode())
	if errors.Is(err, fs.ErrExist) {
		return LoadOrCreateIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return id, nil
}

// ID is the node id of this identity.
func (i *Identity) ID() NodeID { return IDOf(i.Public()) }

// Public is the public key, 32 bytes.
func (i *Identity) Public() ed25519.PublicKey { return i.private.Public().(ed25519.PublicKey) }

// Sign signs payload for one purpose, named by domain: a signature made for one
// is worth nothing for another.
func (i *Identity) Sign(domain string, payload []byte) []byte {
	return ed25519.Sign(i.private, signed(domain, payload))
}

// Verify reports whether sig is public's signature of payload for domain.
func Verify(public ed25519.PublicKey, domain string, payload, sig []byte) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, signed(domain, payload), sig)
}

// signed is what is really signed: the domain, a zero byte that no domain has,
// the payload.
func signed(domain string, payload []byte) []byte {
	b := make([]byte, 0, len(domain)+1+len(payload))
	b = append(b, domain...)
	b = append(b, 0)
	return append(b, payload...)
}
