// Package diagnose finds out which ways between this node and the others are open, in both
// directions and for full packets too, and how far their clocks are apart.
//
// It owns the questions, and the bounds on how many of them others may make this node ask.
// It never changes what it finds, and never says that a way is closed which it could not
// try.
//
// Invariant: anyone who asks this node to connect back is connected to at the addresses that
// gossip knows of it, one question at a time.
package diagnose

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/internal/text"
	"seeder/p2p/gossip"
	"seeder/p2p/members"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
)

// Client asks other nodes, by the address of their transfer port.
type Client interface {
	Echo(ctx context.Context, addr string, there, back int) wire.Echoed
	AskBack(ctx context.Context, addr string, n wire.Nonce) (wire.Answer, error)
	Held(ctx context.Context, addr string, refs []string) ([]string, error)
}

// Gossip sends packets and tells which have come.
type Gossip interface {
	Ping(member string) error
	SendProbe(member string, n gossip.Nonce) error
	AwaitArrival(ctx context.Context, n gossip.Nonce) (small, large bool)
	// Strangers are the hosts that tried to connect with another secret.
	Strangers(since time.Time) []report.Stranger
	// NoAddress is why this host has none that others reach.
	NoAddress() error
}

// Store tells what this host has.
type Store interface {
	// List maps the references that have an image record to their targets.
	List(ctx context.Context) (map[string]digest.Digest, error)
}

// Config is what a Diagnoser is made of.
type Config struct {
	Members *members.Members
	Client  Client
	Gossip  Gossip
	Store   Store
	// Policy is this node's, Policies are those of the members that say theirs, by name.
	Policy   func() report.Policy
	Policies func(ctx context.Context) map[string]*report.Policy
	Log      *slog.Logger
}

// Diagnoser asks and answers. It is safe for concurrent use.
type Diagnoser struct {
	cfg     Config
	probing probing // members that are connected back to
}

// New returns a Diagnoser.
func New(cfg Config) *Diagnoser { return &Diagnoser{cfg: cfg} }

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
	// askTimeout bounds the question who holds an image, maxAsks how many members are
	// asked at once.
	askTimeout = 2 * time.Second
	maxAsks    = 64
	// strangerFor is how long a host that tried another secret is reported: it
	// tries again every 15 s.
	strangerFor = 2 * time.Minute
)

// examined is the report on a member while it is written.
type examined struct{ report.MemberReport }

// All tries the ways between this node and each member, in both directions. It
// takes at most diagnoseTimeout; what could not be tried in that time is unknown.
func (dg *Diagnoser) All(ctx context.Context) report.Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, diagnoseTimeout)
	defer cancel()
	d := report.Diagnosis{Node: dg.cfg.Members.Self(), Members: []report.MemberReport{}, Strangers: []report.Stranger{}}
	d.Strangers = append(d.Strangers, dg.cfg.Gossip.Strangers(time.Now().Add(-strangerFor))...)
	d.Alone = dg.cfg.Members.Join().Reason
	if err := dg.cfg.Gossip.NoAddress(); err != nil {
		d.NoAddress = err.Error()
		return d // nobody can be reached
	}
	d.Conflicts = dg.cfg.Members.Conflicts()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		sem = semaphore.NewWeighted(maxDiagnosed)
	)
	var policies map[string]*report.Policy
	wg.Go(func() { policies = dg.cfg.Policies(ctx) })
	d.Policy, d.NeverReached = dg.cfg.Policy(), dg.cfg.Members.NeverReached()
	doubtful := 0
	for _, m := range dg.cfg.Members.All() {
		if m.Name != dg.cfg.Members.Self() && m.State == gossip.StateAlive && !m.Reached() {
			if doubtful++; doubtful > maxDoubtful {
				continue
			}
		}
		if m.Name == dg.cfg.Members.Self() {
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
					dg.diagnose(ctx, m, &r)
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
func (dg *Diagnoser) diagnose(ctx context.Context, m gossip.Member, r *examined) {
	small, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	echo := dg.cfg.Client.Echo(small, m.Address, 0, 0)
	r.Differs = errors.Is(echo.Reason, trust.ErrSecretsDiffer)
	r.way(report.WayTransfer, true, why(echo.Reason))
	if echo.Reason != nil {
		r.ping(dg.cfg.Gossip.Ping(m.Name))
		r.unknown(true, "it cannot be asked while its transfer port does not answer; run seeder doctor there")
		return
	}
	r.Clock = &report.Clock{AheadMS: echo.Ahead.Milliseconds(), TripMS: echo.Trip.Milliseconds()}
	var wg sync.WaitGroup
	wg.Go(func() { dg.askBack(ctx, m, gossip.NewNonce(), r) })
	var there, back error
	bulk, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	wg.Go(func() { there = dg.cfg.Client.Echo(bulk, m.Address, wire.EchoBytes, 0).Reason })
	wg.Go(func() { back = dg.cfg.Client.Echo(bulk, m.Address, 0, wire.EchoBytes).Reason })
	wg.Wait()
	r.way(report.WayLargeTransfer, true, why(there))
	r.way(report.WayLargeTransfer, false, why(back))
}

// askBack sends packets to a member, and asks it to send some and to connect. A
// node that is busy with another question is asked once more.
func (dg *Diagnoser) askBack(ctx context.Context, m gossip.Member, nonce gossip.Nonce, r *examined) {
	ctx, cancel := context.WithTimeout(ctx, bulkTimeout)
	defer cancel()
	sent := dg.cfg.Gossip.SendProbe(m.Name, nonce)
	a, err := dg.cfg.Client.AskBack(ctx, m.Address, nonce)
	var busy *swarm.BusyError
	if errors.As(err, &busy) {
		select {
		case <-time.After(busy.RetryAfter):
			a, err = dg.cfg.Client.AskBack(ctx, m.Address, nonce)
		case <-ctx.Done():
		}
	}
	if err != nil {
		r.unknown(false, why(err))
		return
	}
	r.way(report.WayTransfer, false, a.Transfer)
	ctx, cancel = context.WithTimeout(ctx, packetTimeout)
	defer cancel()
	in, inLarge := dg.cfg.Gossip.AwaitArrival(ctx, nonce)
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
	return text.Clean(err.Error(), report.MaxTextBytes)
}

// Holders are the members whose stores have these references, no matter who announced
// them or nobody: by reference, the members' names. Who does not answer in time is
// none.
func (dg *Diagnoser) Holders(ctx context.Context, refs []string) map[string][]string {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		out = map[string][]string{}
		sem = semaphore.NewWeighted(maxAsks)
	)
	for _, m := range dg.cfg.Members.Others() {
		wg.Go(func() {
			if sem.Acquire(ctx, 1) != nil {
				return
			}
			defer sem.Release(1)
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			held, err := dg.cfg.Client.Held(ctx, m.Address, refs)
			if err != nil {
				dg.cfg.Log.Debug("failed to ask who holds an image", "member", m.Name, "err", err)
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
