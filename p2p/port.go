package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"seeder/internal/reserve"
	"seeder/p2p/gossip"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
)

// port is this node's transfer port and its connections to those of others: who may
// connect, how fast bytes go, and which connections must end.
type port struct {
	id       trust.NodeID // of this node
	network  Network      // nil: this host's
	creds    *trust.Credentials
	listener net.Listener
	limiter  *wire.Limiter
	client   *wire.Client
	server   *wire.Server // nil until serve
	counters *metrics
	log      *slog.Logger

	expired   chan time.Time // connections from before then must end, capacity 1
	secretsMu sync.Mutex     // held around the locks of credentials and of gossip
	secrets   trust.Secrets  // in use
}

// openPort listens on the transfer port. proved is told whom each handshake has proved.
func openPort(cfg Config, id *trust.Identity, m *metrics, proved func(trust.NodeID), log *slog.Logger) (*port, error) {
	p := &port{id: id.ID(), network: cfg.Network, limiter: wire.NewLimiter(wire.Limits{}), counters: m, log: log, expired: make(chan time.Time, 1), secrets: cfg.Secrets}
	var err error
	if p.creds, err = trust.NewCredentials(id, cfg.Secrets); err != nil {
		return nil, fmt.Errorf("make the node's certificate: %w", err)
	}
	p.listener, err = p.listen(cfg.TransferBind)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on transfer.bind %s: the port is in use by another process; set transfer.bind to a free port or stop that process (ss -ltnp shows it)", cfg.TransferBind)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on transfer.bind %s: %w", cfg.TransferBind, err)
	}
	var dial func(ctx context.Context, network, addr string) (net.Conn, error)
	if p.network != nil {
		dial = p.network.Dial
	}
	p.client = wire.NewClient(wire.ClientConfig{
		Credentials: p.creds, Limiter: p.limiter, Log: cfg.Log.With("component", "wire"),
		Sent: m.sent, Received: m.received, DialContext: dial, Proved: proved,
	})
	p.setLimits(cfg.UploadLimit, cfg.DownloadLimit)
	return p, nil
}

func (p *port) listen(addr string) (net.Listener, error) {
	if p.network != nil {
		return p.network.Listen(addr)
	}
	return net.Listen("tcp", addr)
}

// answerBy makes the server, which answers by h and hands streams of gossip to g.
func (p *port) answerBy(cfg Config, h wire.Handlers, g *gossip.Gossip) {
	p.server = wire.NewServer(wire.ServerConfig{
		Credentials: p.creds, Handlers: h, Limiter: p.limiter, Log: cfg.Log.With("component", "wire"),
		Sent: p.counters.sent, Received: p.counters.received, Gossip: g.Serve, Strange: g.Strange, Proved: g.Proved,
	})
}

// serve answers until ctx ends or close is called.
func (p *port) serve(ctx context.Context) error {
	l := p.listener
	if p.network == nil { // who connects while there is no descriptor is not left waiting
		l = reserve.Listen(l, nil)
	}
	if err := p.server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve the transfer port: %w", err)
	}
	return nil
}

// setLimits changes the limits of all transfers, in bytes per second, 0 for none.
func (p *port) setLimits(upload, download int64) {
	p.limiter.SetLimits(wire.Limits{UploadBytesPerSec: upload, DownloadBytesPerSec: download})
}

// moved closes the connections of an address that is not there any more, empty for that of
// this node: nothing would come on them until they time out.
func (p *port) moved(before string) {
	if before != "" {
		p.client.CloseTo(before)
		return
	}
	now := time.Now()
	p.client.CloseBefore(now)
	p.server.CloseBefore(now)
}

// advertised is the transfer address as other members learn it: with an empty
// host they use the gossip address of this node.
func (p *port) advertised(bind, advertise string) string {
	_, port, _ := net.SplitHostPort(p.listener.Addr().String())
	if advertise != "" {
		if _, _, err := net.SplitHostPort(advertise); err == nil {
			return advertise
		}
		return net.JoinHostPort(advertise, port)
	}
	host, _, _ := net.SplitHostPort(bind)
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = ""
	}
	return net.JoinHostPort(host, port)
}

// connectionGrace is how long connections go on that were agreed on with a secret
// that is not in use any more: as long as a chunk may take on any useful link.
const connectionGrace = 30 * time.Second

// setSecrets changes the secrets: the first is used, all are accepted. setKeys gives gossip
// its keys. Gossip and new connections use them at once. Where a secret was taken away, the
// connections from before end after connectionGrace, so that nobody stays in the
// cluster by what he knew once.
func (p *port) setSecrets(secrets trust.Secrets, setKeys func([][]byte) error) error {
	p.secretsMu.Lock()
	defer p.secretsMu.Unlock()
	if secrets.Equal(p.secrets) {
		return nil
	}
	if err := p.creds.SetSecrets(secrets); err != nil {
		return fmt.Errorf("make the node's certificate: %w", err)
	}
	if err := setKeys(secrets.GossipKeys()); err != nil {
		return err
	}
	taken := !secrets.Has(p.secrets)
	p.secrets = secrets
	p.client.Close() // what is idle; the next requests shake hands anew
	if taken {
		select {
		case <-p.expired: // a later moment takes in the earlier one
		default:
		}
		p.expired <- time.Now()
	}
	return nil
}

// expire ends the connections from before a secret was taken away.
func (p *port) expire(ctx context.Context) {
	for {
		var before time.Time
		select {
		case before = <-p.expired:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(connectionGrace):
		case <-ctx.Done():
			return
		}
		p.server.CloseBefore(before)
		p.client.CloseBefore(before)
		p.log.Info("closed connections of a removed secret")
	}
}

const (
	// answerGrace is what the answers that are being sent have at the end. Anyone who
	// asked for one that is cut off asks another node.
	answerGrace = 3 * time.Second
	// lastGrace is what those have that were asked for during the farewell, where that took long.
	lastGrace = 500 * time.Millisecond
)

// close ends every answer. The node has been closing since that time.
func (p *port) close(since time.Time) error {
	if p.server == nil {
		return p.listener.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(answerGrace-time.Since(since), lastGrace))
	defer cancel()
	return p.server.Close(ctx)
}
