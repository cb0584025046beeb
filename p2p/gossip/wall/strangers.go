package wall

import (
	"cmp"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"seeder/p2p/report"
)

const (
	// maxStrangers bounds what is remembered and told of them.
	maxStrangers = 32
	// warnEvery and warnLines bound what is logged of hosts without the secret, of all
	// of them together: anybody can send a packet with any source address.
	warnEvery = 10 * time.Minute
	warnLines = 20
)

// strangers is what is known of hosts without an accepted secret. It is safe for
// concurrent use.
type strangers struct {
	log *slog.Logger
	now func() time.Time

	mu         sync.Mutex
	heard      map[string]time.Time // host → when it last tried to connect
	began      time.Time            // of the current warnEvery
	warned     map[string]bool      // hosts that were told of since
	suppressed int                  // events that were not told of since
}

func newStrangers(log *slog.Logger) *strangers {
	return &strangers{log: log, now: time.Now, heard: map[string]time.Time{}, warned: map[string]bool{}}
}

// connected books a host whose handshake failed because its secret differs. Its
// address is its own: a connection was there.
func (s *strangers) connected(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.heard[host]; !known && len(s.heard) >= maxStrangers {
		delete(s.heard, s.oldest())
	}
	s.heard[host] = s.now()
	s.warn(host, "rejected a connection from a host with a different cluster secret; give it the same secret file, or join it to another cluster")
}

// packet books a packet that no key opens. Its source address may be forged.
func (s *strangers) packet(from net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warn(hostOf(from), "dropped packets that no accepted secret decrypts: the sender has a different secret or does not run seeder")
}

func (s *strangers) oldest() string {
	var host string
	for h, at := range s.heard {
		if host == "" || at.Before(s.heard[host]) {
			host = h
		}
	}
	return host
}

// warn logs one line for each host, and no more than warnLines, in warnEvery. mu is
// held.
func (s *strangers) warn(host, text string) {
	now := s.now()
	if now.Sub(s.began) >= warnEvery {
		if s.suppressed > 0 {
			s.log.Warn("suppressed warnings about hosts without the secret", "suppressed", s.suppressed, "since", s.began)
		}
		s.began, s.suppressed = now, 0
		clear(s.warned)
	}
	switch {
	case s.warned[host]:
	case len(s.warned) >= warnLines-1: // the line that counts is the last one
		s.suppressed++
	default:
		s.warned[host] = true
		s.log.Warn(text, "host", host)
	}
}

// list are those that tried to connect since some time, the last first.
func (s *strangers) list(since time.Time) []report.Stranger {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []report.Stranger
	for host, at := range s.heard {
		if at.After(since) {
			out = append(out, report.Stranger{Host: host, At: at})
		}
	}
	slices.SortFunc(out, func(a, b report.Stranger) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Host, b.Host)) })
	return out
}
