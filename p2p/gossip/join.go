package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"seeder/p2p/trust"
)

const (
	// firstRetry and lastRetry bound the back-off while this node is alone.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
	// healInterval is how often members that are missing are tried while others
	// are there: memberlist itself never comes back to a dead member, so two
	// halves of a healed network would stay apart.
	healInterval = 20 * time.Second
	// maxTries is how many absent members one round tries, join addresses aside.
	maxTries = 4
)

// rejoin joins the configured addresses and the members that were known, again
// and again while any of them is missing. A node that is alone is healthy: it
// tries quietly.
func (g *Gossip) rejoin(ctx context.Context) {
	retry := firstRetry
	for {
		targets := g.missing(ctx, g.known)
		err := g.join(ctx, targets)
		g.note(ctx, err)
		pause := healInterval
		if g.members.alive() <= 1 && len(targets) > 0 {
			pause, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		g.savePeers()
		if !wait(ctx, jitter(pause)) {
			return
		}
	}
}

// missing lists addresses that should be members and are not: the configured
// ones, and a few of those that are known and do not answer.
func (g *Gossip) missing(ctx context.Context, known []string) []string {
	there := map[string]bool{}
	var gone []string
	for _, m := range g.members.list() {
		if m.State == StateAlive {
			there[m.gossip] = true
		}
		if m.State == StateDead {
			gone = append(gone, m.gossip)
		}
	}
	var out []string
	add := func(addr string) {
		if !there[addr] {
			there[addr] = true
			out = append(out, addr)
		}
	}
	_, port, _ := splitAddr(g.cfg.BindAddr, 0)
	for _, join := range g.cfg.Join() {
		for _, addr := range resolve(ctx, join, port) {
			add(addr)
		}
	}
	if g.members.alive() <= 1 {
		gone = append(gone, known...)
	}
	rand.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
	for _, addr := range gone[:min(maxTries, len(gone))] {
		add(addr)
	}
	return out
}

// resolve turns host[:port] into ip:port addresses; a name that cannot be looked
// up now stays as it is and fails to join with its reason.
func resolve(ctx context.Context, addr string, defaultPort int) []string {
	host, port, err := splitAddr(addr, defaultPort)
	if err != nil {
		return []string{addr}
	}
	p := strconv.Itoa(port)
	if net.ParseIP(host) != nil {
		return []string{net.JoinHostPort(host, p)}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return []string{net.JoinHostPort(host, p)}
	}
	var out []string
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip, p))
	}
	return out
}

// join tries each target and returns the last failure, explained.
func (g *Gossip) join(ctx context.Context, targets []string) error {
	var last error
	for _, t := range targets {
		if ctx.Err() != nil {
			return nil
		}
		if _, err := g.list.Join([]string{t}); err != nil {
			last = g.explain(ctx, t, err)
		}
	}
	return last
}

// explain says why target could not be joined. A host with another secret can
// read none of our bytes nor we its answer, so memberlist only knows that
// decryption failed or that the stream ended: the transfer port's certificate
// tells.
func (g *Gossip) explain(ctx context.Context, target string, err error) error {
	if g.cfg.Probe != nil {
		host, _, _ := splitAddr(target, 0)
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if perr := g.cfg.Probe(ctx, host); errors.Is(perr, trust.ErrSecretsDiffer) {
			return fmt.Errorf("join %s: %w", target, trust.ErrSecretsDiffer)
		}
	}
	if undecryptable(err.Error()) {
		return fmt.Errorf("join %s: %w", target, trust.ErrSecretsDiffer)
	}
	return fmt.Errorf("join %s: %w", target, err)
}

// undecryptable recognises memberlist's word for a message of another secret,
// said by this node or by the other one.
func undecryptable(s string) bool {
	return strings.Contains(s, "installed keys could decrypt")
}

// note keeps and logs why the cluster could not be joined, when that changes.
func (g *Gossip) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		err = nil
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	g.mu.Lock()
	changed := (err == nil) != (g.failed == nil) || err != nil && reason != g.failed.Error()
	g.failed = err
	switch {
	case err == nil:
		g.since = time.Time{}
	case g.since.IsZero():
		g.since = time.Now()
	}
	g.mu.Unlock()
	switch {
	case !changed:
	case errors.Is(err, trust.ErrSecretsDiffer):
		g.log.Error("cannot join the cluster", "err", err)
	case reason != "" && g.members.alive() <= 1:
		g.log.Warn("cannot join the cluster yet; trying on", "err", err)
	case reason != "":
		g.log.Debug("a member is missing", "err", err)
	}
}

// jitter spreads d by ± 20 %, so that nodes do not march in step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// wait pauses; false says that ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// logWriter takes memberlist's log lines ("[WARN] memberlist: …"). What it calls
// an error is mostly the network being the network, so all of it is debug,
// except that somebody with another secret knocks.
type logWriter struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	closed bool
	warned map[string]time.Time // remote host → last warning
	heard  map[string]time.Time // remote host → when it last knocked
}

// strangers are the hosts that knocked since some time.
func (w *logWriter) strangers(since time.Time) []Stranger {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Stranger
	for host, at := range w.heard {
		if at.After(since) {
			out = append(out, Stranger{Host: host, At: at})
		}
	}
	return out
}

// close drops what comes from now on: memberlist's timers of suspicion outlive
// its Shutdown, and whoever handed the log in need not.
func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// Write implements io.Writer, one line a call.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(p), nil
	}
	line := strings.TrimSpace(string(p))
	at := strings.LastIndex(line, "from=")
	if at < 0 || !undecryptable(strings.ToLower(line)) {
		w.log.Debug(line) // without a sender it is this node that was not understood, which note tells
		return len(p), nil
	}
	from := line[at+len("from="):]
	host, _, err := net.SplitHostPort(from)
	if err != nil {
		host = from
	}
	if w.warned == nil || len(w.warned) > 1000 {
		w.warned, w.heard = map[string]time.Time{}, map[string]time.Time{}
	}
	w.heard[host] = w.now()
	if now := w.now(); now.Sub(w.warned[host]) > 10*time.Minute {
		w.warned[host] = now
		w.log.Warn("a host knocks whose secret differs from ours; give it the same secret file, or tell it another cluster", "from", from)
	}
	return len(p), nil
}
