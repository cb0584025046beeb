package trust

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"time"
)

// ErrSecretsDiffer says that the other side is a seeder of another cluster, or
// of this one with another secret.
var ErrSecretsDiffer = errors.New("the secrets differ: the other host's certificate comes from another secret; give both hosts the same secret file")

// errNotSeeder says that the other side is something else.
var errNotSeeder = errors.New("the other side is not a seeder node: its certificate is of another kind")

// caName marks certificates as seeder's, so that a foreign secret and a foreign
// program can be told apart.
const caName = "seeder cluster CA"

// Certificates are valid at any time: hosts without a clock battery must be able
// to join, and the secret is what is rotated.
var (
	notBefore = time.Date(1970, 1, 1, 0, 0, 1, 0, time.UTC)
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280, 4.1.2.5: no expiry
)

// Credentials are what a node shows on the transfer port and what it accepts. They
// are safe for concurrent use.
type Credentials struct {
	id  *Identity
	now atomic.Pointer[certificates]
}

// certificates are those of the secrets in use.
type certificates struct {
	leaf  tls.Certificate // signed by the CA of the first secret
	roots *x509.CertPool  // the CAs of all secrets
}

// NewCredentials derives the cluster CA of each secret and signs the node's leaf
// certificate, whose key is its identity, with the first one.
func NewCredentials(id *Identity, secrets Secrets) (*Credentials, error) {
	c := &Credentials{id: id}
	return c, c.SetSecrets(secrets)
}

// SetSecrets applies other secrets, for the handshakes from now on. What was
// agreed on before is left to the owner of the connections.
func (c *Credentials) SetSecrets(secrets Secrets) error {
	now, err := certify(c.id, secrets)
	if err != nil {
		return err
	}
	c.now.Store(now)
	return nil
}

func certify(id *Identity, secrets Secrets) (*certificates, error) {
	if len(secrets) == 0 {
		return nil, ErrNoSecret
	}
	c := &certificates{roots: x509.NewCertPool()}
	for i, s := range secrets {
		ca, key, err := s.ca()
		if err != nil {
			return nil, err
		}
		c.roots.AddCert(ca)
		if i == 0 {
			if c.leaf, err = leafOf(id, ca, key); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

// ca is the CA of a secret. Everything in it is fixed and ed25519 signatures are
// deterministic, so each node makes the same certificate.
func (s Secret) ca() (*x509.Certificate, crypto.Signer, error) {
	key := ed25519.NewKeyFromSeed(s.derive("cluster CA", ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: caName},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the cluster CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func leafOf(id *Identity, ca *x509.Certificate, key crypto.Signer) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: string(id.ID())},
		NotBefore: notBefore, NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, id.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the node's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.private}, nil
}

// ServerConfig is the TLS configuration of the transfer port, for one of these
// protocols (ALPN).
func (c *Credentials) ServerConfig(protocols ...string) *tls.Config {
	cfg := c.config(protocols)
	cfg.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection
	return cfg
}

// ClientConfig is the TLS configuration towards other nodes' transfer ports, for a
// protocol (ALPN).
func (c *Credentials) ClientConfig(protocol string) *tls.Config {
	return c.config([]string{protocol})
}

// config verifies the peer by its chain to the cluster CA alone: nodes have no
// DNS names, and any host name is fine that holds the secret. InsecureSkipVerify
// switches off only the built-in check, which insists on names; VerifyConnection
// takes its place on both sides and in every handshake.
func (c *Credentials) config(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.now.Load().leaf, nil },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.now.Load().leaf, nil },
		NextProtos:             protocols,
		SessionTicketsDisabled: true, // a resumed session would outlive a rotated secret
		InsecureSkipVerify:     true,
		// Small records at first serve web pages; here they only cost.
		DynamicRecordSizingDisabled: true,
		VerifyConnection:            c.verify,
	}
}

func (c *Credentials) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the other side shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if _, ok := leaf.PublicKey.(ed25519.PublicKey); !ok || leaf.Issuer.CommonName != caName {
		return errNotSeeder
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: c.now.Load().roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return ErrSecretsDiffer
	}
	return nil
}

// Explain turns the other side's refusal of this host's certificate, which
// reaches a client as a TLS alert after its own handshake, into
// ErrSecretsDiffer. Other errors come back as they are.
func Explain(err error) error {
	var op *net.OpError
	// crypto/tls keeps the type of the alerts of a net.Conn to itself.
	if errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == alertBadCertificate.Error() {
		return fmt.Errorf("the other host refuses this host's certificate: %w", ErrSecretsDiffer)
	}
	return err
}

// alertBadCertificate is what crypto/tls sends when VerifyConnection fails.
const alertBadCertificate tls.AlertError = 42

// PeerID is the proved id of the other side of a finished handshake.
func PeerID(cs tls.ConnectionState) (NodeID, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return "", errors.New("the other side has shown no certificate")
	}
	public, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", errNotSeeder
	}
	return IDOf(public), nil
}
