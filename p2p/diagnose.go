package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"seeder/internal/text"
	"seeder/p2p/gossip"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
)

const (
	// diagnoseTimeout bounds a diagnosis, however many members hang; a last ping may
	// take half a second more.
	diagnoseTimeout = 10 * time.Second
	// maxDiagnosed is how many members are probed at once.
	maxDiagnosed = 12
	// reachTimeout bounds one small request to a member, bulkTimeout one that a few
	// full packets carry, which a slow link or a limit may hold up.
	reachTimeout = 3 * time.Second
	bulkTimeout  = 5 * time.Second
	// maxDoubtful is how many members that were never reached are tried.
	maxDoubtful = 32
	// strangerFor is how long a host is told of that knocked with another secret: it
	// tries again every 15 s.
	strangerFor = 2 * time.Minute
)

// examined is the report on a member while it is written.
type examined struct{ report.MemberReport }

// Diagnose tries the ways between this node and each member, in both directions. It
// takes at most diagnoseTimeout; what could not be tried in that time is unknown.
func (n *Node) Diagnose(ctx context.Context) report.Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
	defer cancel()
	d := report.Diagnosis{Node: n.cfg.Name, Members: []report.MemberReport{}, Strangers: []report.Stranger{}}
	for _, s := range n.gossip.Strangers(time.Now().Add(-strangerFor)) {
		d.Strangers = append(d.Strangers, report.Stranger(s))
	}
	if joined, failed := n.gossip.Status(); !joined && failed != nil {
		d.Alone = failed.Error()
	}
	if err := n.gossip.NoAddress(); err != nil {
		d.NoAddress = err.Error()
		return d // nobody can be reached
	}
	d.Conflicts = n.conflicts()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		sem = semaphore.NewWeighted(maxDiagnosed)
	)
	var policies map[string]*report.Policy
	wg.Go(func() { policies = n.policies(ctx) })
	d.Policy, d.NeverReached = n.policy(), n.gossip.NeverReached()
	doubtful := 0
	for _, m := range gossip.ProofFirst(n.gossip.Members()) {
		if m.Name != n.cfg.Name && m.State == gossip.StateAlive && !m.Reached() {
			if doubtful++; doubtful > maxDoubtful {
				continue
			}
		}
		if m.Name == n.cfg.Name {
			d.Gossip, d.Transfer, d.Protocols = m.GossipAddress(), m.Address, protocolsOf(m)
			continue
		}
		if m.State == gossip.StateLeft {
			continue
		}
		wg.Go(func() {
			r := examined{report.MemberReport{Protocols: protocolsOf(m), Name: m.Name, Transfer: m.Address, Gossip: m.GossipAddress(), State: m.State, Reason: m.Reason, Fix: m.Fix, Version: m.Version}}
			if m.Reason == "" {
				if sem.Acquire(ctx, 1) == nil {
					n.diagnose(ctx, m, &r)
					sem.Release(1)
				} else {
					r.unknown(false, "there are so many members that this one's turn did not come")
				}
			}
			mu.Lock()
			defer mu.Unlock()
			d.Members = append(d.Members, r.MemberReport)
		})
	}
	wg.Wait()
	for i := range d.Members {
		d.Members[i].Policy = policies[d.Members[i].Name]
	}
	slices.SortFunc(d.Members, func(a, b report.MemberReport) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// protocolsOf is what a member says it speaks, empty where it has not said.
func protocolsOf(m gossip.Member) string {
	if m.Protocols == (gossip.Protocols{}) {
		return ""
	}
	return m.Protocols.String()
}

// diagnose tries the ways to and from one member.
func (n *Node) diagnose(ctx context.Context, m gossip.Member, r *examined) {
	small, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	echo := n.client.Echo(small, m.Address, 0, 0)
	r.Differs = errors.Is(echo.Reason, trust.ErrSecretsDiffer)
	r.way(report.WayTransfer, true, why(echo.Reason))
	if echo.Reason != nil {
		r.ping(n.gossip.Ping(m.Name))
		r.unknown(true, "it cannot be asked while its transfer port does not answer; run seeder doctor there")
		return
	}
	if echo.Old {
		r.ping(n.gossip.Ping(m.Name))
		r.unknown(true, "its seeder "+m.Version+" is older and cannot be asked")
		return
	}
	r.Clock = &report.Clock{AheadMS: echo.Ahead.Milliseconds(), TripMS: echo.Trip.Milliseconds()}
	var wg sync.WaitGroup
	wg.Go(func() { n.askBack(ctx, m, gossip.NewNonce(), r) })
	var there, back error
	bulk, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	wg.Go(func() { there = n.client.Echo(bulk, m.Address, wire.EchoBytes, 0).Reason })
	wg.Go(func() { back = n.client.Echo(bulk, m.Address, 0, wire.EchoBytes).Reason })
	wg.Wait()
	r.way(report.WayLargeTransfer, true, why(there))
	r.way(report.WayLargeTransfer, false, why(back))
}

// askBack sends packets to a member, and asks it to send some and to connect. A
// node that is busy with another question is asked once more.
func (n *Node) askBack(ctx context.Context, m gossip.Member, nonce gossip.Nonce, r *examined) {
	ctx, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	sent := n.gossip.SendProbe(m.Name, nonce)
	a, err := n.client.AskBack(ctx, m.Address, nonce)
	var busy *swarm.BusyError
	if errors.As(err, &busy) {
		select {
		case <-time.After(busy.RetryAfter):
			a, err = n.client.AskBack(ctx, m.Address, nonce)
		case <-ctx.Done():
		}
	}
	if err != nil {
		reason := why(err)
		if errors.Is(err, fs.ErrNotExist) {
			reason = "its seeder " + m.Version + " is older and cannot be asked"
		}
		r.unknown(false, reason)
		return
	}
	r.way(report.WayTransfer, false, a.Transfer)
	ctx, cancel = context.WithTimeout(ctx, packetTimeout)
	defer cancel()
	in, inLarge := n.gossip.AwaitArrival(ctx, nonce)
	r.packets(true, a.GossipUDP, a.GossipUDPLarge, sent)
	r.packets(false, in, inLarge, nil)
}

// packets books the ways of one direction of gossip's packets.
func (r *examined) packets(out, small, large bool, sent error) {
	reason, reasonLarge := "", ""
	if !small {
		reason = "no packet arrives"
		if sent != nil {
			reason = why(sent)
		}
	}
	if small && !large {
		reasonLarge = "small packets arrive, full ones do not"
	}
	r.way(report.WayGossipUDP, out, reason)
	if small {
		r.way(report.WayLargeGossip, out, reasonLarge)
	}
}

// ping books the answer to a packet, which needs both directions.
func (r *examined) ping(err error) {
	reason := ""
	if err != nil {
		reason = "no answer to a packet"
	}
	r.way(report.WayGossipUDP, true, reason)
}

func (r *examined) way(what string, out bool, reason string) {
	w := report.Way{What: what, Out: out, State: report.WayOpen, Why: reason}
	if reason != "" {
		w.State = report.WayClosed
	}
	r.Ways = append(r.Ways, w)
}

// unknown books as unknown what could not be tried; only the member's direction, or
// both.
func (r *examined) unknown(in bool, reason string) {
	for _, what := range []string{report.WayTransfer, report.WayGossipUDP} {
		for _, out := range []bool{true, false} {
			tried := slices.ContainsFunc(r.Ways, func(w report.Way) bool { return w.What == what && w.Out == out })
			if !tried && !(in && out) {
				r.Ways = append(r.Ways, report.Way{What: what, Out: out, State: report.WayUnknown, Why: reason})
			}
		}
	}
}

// why is the reason in an error of the network, short enough for a line.
func why(err error) string {
	var dns *net.DNSError
	switch {
	case err == nil:
		return ""
	case errors.Is(err, trust.ErrSecretsDiffer):
		return "its secret differs"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to it"
	case errors.As(err, &dns):
		return fmt.Sprintf("%q cannot be looked up", dns.Name)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer"
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer"
	}
	return text.Clean(err.Error(), maxReasonBytes)
}

// Holders are the members whose stores have these references, whoever announced
// them or nobody: by reference, the members' names. Who does not answer in time is
// none.
func (n *Node) Holders(ctx context.Context, refs []string) map[string][]string {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		out = map[string][]string{}
		sem = semaphore.NewWeighted(maxAsks)
	)
	for _, m := range n.gossip.Peers() {
		if m.Name == n.cfg.Name {
			continue
		}
		wg.Go(func() {
			if sem.Acquire(ctx, 1) != nil {
				return
			}
			defer sem.Release(1)
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			held, err := n.client.Held(ctx, m.Address, refs)
			if err != nil {
				n.log.Debug("failed to ask who holds an image", "member", m.Name, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ref := range held {
				out[ref] = append(out[ref], m.Name)
			}
		})
	}
	wg.Wait()
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}
