package gossip

import (
	"context"
	"errors"
	"fmt"
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

// joiner joins those that are missing, and keeps why they cannot be joined.
type joiner struct {
	g *Gossip

	mu     sync.Mutex
	failed error     // why the cluster could not be joined, nil once it was
	since  time.Time // since when failed is not nil
}

// last is since when joining fails, and what became of the last try.
func (j *joiner) last() (since time.Time, failed error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.since, j.failed
}

// rejoin joins the configured addresses and the members that were known, again
// and again while any of them is missing. A node that is alone is healthy: it
// tries quietly.
func (j *joiner) rejoin(ctx context.Context) {
	retry := firstRetry
	for {
		targets, err := []string(nil), j.g.site.homeless()
		if err == nil {
			targets = j.missing(ctx, j.g.roster.known)
			err = j.join(ctx, targets)
		}
		j.recordJoin(ctx, err)
		pause := healInterval
		if j.g.members.aliveCount() <= 1 && len(targets) > 0 {
			pause, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		j.g.roster.savePeers()
		if !j.pause(ctx, jitter(pause)) {
			return
		}
	}
}

// pause is wait, in which a farewell is written down at once: nobody would say it again
// to a host that loses its power before the file is written.
func (j *joiner) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-j.g.roster.parted:
			j.g.roster.savePeers()
		case <-t.C:
			return true
		}
	}
}

// missing lists addresses that should be members and are not: the configured
// ones, and a few of those that are known and do not answer.
func (j *joiner) missing(ctx context.Context, known []string) []string {
	there := map[string]bool{}
	var gone []string
	for _, m := range j.g.members.list() {
		if m.State == StateAlive {
			there[m.Address], there[m.joinAddress()] = true, true
		}
		if m.State == StateDead && m.voucher == "" { // one that is there and was never reached joins by itself
			gone = append(gone, m.joinAddress())
		}
	}
	var out []string
	add := func(addr string) {
		if addr != "" && !there[addr] {
			there[addr] = true
			out = append(out, addr)
		}
	}
	for _, join := range j.g.cfg.Join() {
		for _, addr := range resolve(ctx, join, j.g.cfg.JoinPort) {
			add(addr)
		}
	}
	if j.g.members.aliveCount() <= 1 {
		gone = append(gone, known...)
	}
	rand.Shuffle(len(gone), func(i, j int) { gone[i], gone[j] = gone[j], gone[i] })
	for _, addr := range gone[:min(maxTries, len(gone))] {
		add(addr)
	}
	return out
}

// joinAddress is where m can be joined, ip:port: its transfer address, with the
// address of its gossip where that is a name; empty where it has said none.
func (m Member) joinAddress() string {
	host, port, err := net.SplitHostPort(m.Address)
	if err != nil {
		return ""
	}
	if net.ParseIP(host) == nil {
		host, _, _ = net.SplitHostPort(m.gossip)
	}
	return net.JoinHostPort(host, port)
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
func (j *joiner) join(ctx context.Context, targets []string) error {
	var last error
	defer j.g.ranks.joining()()
	for _, t := range targets {
		if ctx.Err() != nil {
			return nil
		}
		if _, err := j.g.site.list.Load().Join([]string{t}); err != nil {
			last = explain(t, err)
		}
	}
	return last
}

// explain says why target could not be joined. memberlist keeps the text of an
// error alone.
func explain(target string, err error) error {
	if strings.Contains(err.Error(), trust.ErrSecretsDiffer.Error()) {
		return fmt.Errorf("join %s: %w", target, trust.ErrSecretsDiffer)
	}
	return fmt.Errorf("join %s: %s", target, plainError(err, target))
}

// plainError is memberlist's error in one line: it gives a list with one entry, below a
// heading, which names the target again.
func plainError(err error, target string) string {
	text := err.Error()
	if i := strings.LastIndex(text, "* "); i >= 0 {
		text = text[i+2:]
	}
	text = strings.TrimSpace(text)
	for _, head := range []string{"Failed to join ", "failed to join "} {
		if rest, ok := strings.CutPrefix(text, head); ok {
			_, why, found := strings.Cut(rest, ": ")
			if found {
				return why
			}
			return rest
		}
	}
	return strings.TrimPrefix(text, target+": ")
}

// recordJoin keeps and logs why the cluster could not be joined, if that has changed.
func (j *joiner) recordJoin(ctx context.Context, err error) {
	if ctx.Err() != nil {
		err = nil
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	j.mu.Lock()
	changed := (err == nil) != (j.failed == nil) || err != nil && reason != j.failed.Error()
	j.failed = err
	switch {
	case err == nil:
		j.since = time.Time{}
	case j.since.IsZero():
		j.since = time.Now()
	}
	j.mu.Unlock()
	switch {
	case !changed:
	case errors.Is(err, trust.ErrSecretsDiffer):
		j.g.log.Error("failed to join the cluster", "err", err)
	case reason != "" && j.g.members.aliveCount() <= 1:
		j.g.log.Warn("failed to join the cluster; will retry", "err", err)
	case reason != "":
		j.g.log.Debug("failed to reach a member", "err", err)
	}
}

// jitter spreads d by ± 20 %, so that nodes do not march in step.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
