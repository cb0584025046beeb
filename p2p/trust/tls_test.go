package trust

import (
	"crypto/tls"
	"errors"
	"testing"
)

// ticketCache counts the sessions that a server let its client resume.
type ticketCache struct {
	tls.ClientSessionCache
	put int
}

func (c *ticketCache) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		c.put++
	}
	c.ClientSessionCache.Put(key, s)
}

// TestNothingOlderThanTLS13: a member that speaks TLS 1.2 alone is refused, and nobody gets
// a ticket with which it could come back after its secret was removed.
func TestNothingOlderThanTLS13(t *testing.T) {
	t.Parallel()
	srv := serve(t, credentials(t, secrets(t, one)))
	old := credentials(t, secrets(t, one)).ClientConfig("http/1.1")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	var alert tls.AlertError
	if _, err := get(t, old, srv); err == nil {
		t.Error("TLS 1.2 was accepted")
	} else if errors.As(err, &alert) && alert != 70 { // protocol_version (RFC 8446, 6)
		t.Errorf("TLS 1.2 was refused because of something else: %v", err)
	}
	cache := &ticketCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	again := credentials(t, secrets(t, one)).ClientConfig("http/1.1")
	again.SessionTicketsDisabled, again.ClientSessionCache, again.ServerName = false, cache, "node"
	for range 3 {
		resp, err := get(t, again, srv)
		if err != nil {
			t.Fatal(err)
		}
		if resp.TLS.DidResume {
			t.Error("a session was resumed")
		}
	}
	if cache.put > 0 {
		t.Errorf("the server gave %d tickets", cache.put)
	}
}
