package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/p2p/report"
	"seeder/p2p/trust"
	transfer "seeder/p2p/wire"
)

// differFix is what helps where two hosts' secrets differ. Nothing that is derived
// from a secret is printed to compare it by: what doctor prints goes into tickets and
// chats, and the password of a k3s token may be one that can be guessed with such a
// text at hand. A handshake compares them without telling anybody.
const differFix = "give both hosts the same secret: copy " + config.DefaultSecretFile + " (mode 0600), or correct the k3s token there; then `seeder reload` on the host that was changed"

// checkSecret looks at the secret that is there now, and whether it is in use.
func (e *exam) checkSecret(ctx context.Context) []finding {
	cfg := e.config(ctx)
	f, err := k3s.LoadSecrets(cfg, e.root)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return one(needsRoot("secret", ""))
		}
		return one(finding{Name: "secret", State: stateProblem, Detail: err.Error(), Fix: "see the error above; then `systemctl restart seeder`"})
	}
	d, err := e.ask(ctx)
	out := finding{Name: "secret", State: StateOK, Subject: f.Source}
	switch {
	case err == nil && d.Pending.Secret != "":
		out.State, out.Subject = stateProblem, d.Pending.Secret
		out.Detail = fmt.Sprintf("it was changed: the daemon still uses the previous secret (from %s), so hosts with the new one reject it", d.Pending.Held)
		out.Fix = "seeder reload"
		if f.Alone || d.Pending.Held == "none" {
			out.Fix = "systemctl restart seeder"
		}
		if strings.HasPrefix(d.Pending.Secret, k3s.TokenSource) {
			out.Detail += "; if the k3s token was rotated, set the new one as K3S_TOKEN on each agent"
		}
	case err == nil && d.Pending.Error != "":
		out.State, out.Detail, out.Fix = stateProblem, "the daemon could not reload: "+d.Pending.Error, "see the error above; then `seeder reload`"
	case f.Alone:
		out.State, out.Detail = StateWarning, "no secret: this node stays alone"
		out.Fix = "seeder secret generate > " + config.DefaultSecretFile + " && chmod 600 " + config.DefaultSecretFile + ", the same file on each host"
	case f.Note != "":
		out.State, out.Detail, out.Fix = StateWarning, f.Note, "seeder secret generate, and docs/security.md, changing the secret"
		if strings.Contains(f.Note, "every user") {
			out.Fix = "chmod 600 " + f.Source
		}
	}
	return one(out)
}

const (
	// maxJoins is how many join addresses are tried.
	maxJoins = 16
	// joinTimeout bounds one of them.
	joinTimeout = 4 * time.Second
)

// checkJoin tries the addresses that this host joins, whether or not a daemon runs.
func (e *exam) checkJoin(ctx context.Context) []finding {
	cfg := e.config(ctx)
	hosts, from := k3s.Joins(cfg, e.root)
	if len(hosts) == 0 {
		f := finding{Name: "join", State: StateOK, Detail: "no address to join; others join this host"}
		return one(f)
	}
	if from == "" {
		from = "gossip.join"
	}
	secrets, err := k3s.LoadSecrets(cfg, e.root)
	if errors.Is(err, os.ErrPermission) {
		return one(needsRoot("join", ""))
	}
	if err != nil {
		return one(finding{Name: "join", State: StateSkipped, Detail: "no node answers without a secret"})
	}
	client, err := stranger(secrets.Secrets)
	if err != nil {
		return one(finding{Name: "join", State: StateSkipped, Detail: err.Error()})
	}
	defer client.Close()
	var members report.Members
	_ = e.client.Get(ctx, "/v1/members", nil, &members) // none where no daemon runs
	hosts = hosts[:min(len(hosts), maxJoins)]
	out := make([]finding, len(hosts))
	var wg sync.WaitGroup
	for i, host := range hosts {
		wg.Go(func() {
			out[i] = tryJoin(ctx, client, cfg, host, members)
			out[i].Subject += " (from " + from + ")"
		})
	}
	wg.Wait()
	return out
}

// stranger is a client with the cluster's secrets and an identity that ends with it.
func stranger(secrets trust.Secrets) (*transfer.Client, error) {
	dir, err := os.MkdirTemp("", "seeder-doctor-")
	if err != nil {
		return nil, fmt.Errorf("make an identity to ask with: %w", err)
	}
	defer os.RemoveAll(dir)
	id, err := trust.LoadOrCreateIdentity(filepath.Join(dir, "identity"))
	if err != nil {
		return nil, fmt.Errorf("make an identity to ask with: %w", err)
	}
	creds, err := trust.NewCredentials(id, secrets)
	if err != nil {
		return nil, err
	}
	return transfer.NewClient(transfer.ClientConfig{Credentials: creds}), nil
}

// tryJoin tries one address as the daemon does.
func tryJoin(ctx context.Context, client *transfer.Client, cfg config.Config, join string, members report.Members) finding {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	f := finding{Name: "join", State: stateProblem, Subject: join}
	host, port, err := net.SplitHostPort(join)
	if err != nil {
		host = join
		_, port, _ = net.SplitHostPort(cfg.Transfer.Bind)
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		f.Detail, f.Fix = fmt.Sprintf("failed to look up %q: %v", host, err), "correct the name in gossip.join, or write the address"
		return f
	}
	if what := known(ips, members); what != "" {
		f.State, f.Detail = StateOK, what
		return f
	}
	switch err := client.Echo(ctx, net.JoinHostPort(ips[0], port), 0, 0).Reason; {
	case errors.Is(err, trust.ErrSecretsDiffer):
		f.Name = "secret"
		f.Detail, f.Fix = "its secret differs from this host's", differFix
	case err != nil:
		_, gossipPort, _ := net.SplitHostPort(cfg.Gossip.Bind)
		f.Detail = fmt.Sprintf("its transfer port %s/tcp cannot be reached: %s", port, dialWhy(err))
		f.Fix = fmt.Sprintf("is the host up and `systemctl status seeder` active there? Then open the ports there: %s", openPort(port+"/tcp", gossipPort+"/udp"))
	default:
		f.State, f.Detail = StateOK, "it answers, with the same secret"
		if len(members.Members) > 0 {
			f.State, f.Detail = StateWarning, "it answers, with the same secret, but is not a member (yet)"
			f.Fix = "wait half a minute and try again; then look at `journalctl -u seeder` on both hosts"
		}
	}
	return f
}

// known says what an address needs no trying for: it is this host's own, or an alive
// member's.
func known(ips []string, members report.Members) string {
	for _, ip := range ips {
		if ownAddress(ip) {
			return "this host itself"
		}
		for _, m := range members.Members {
			if hostOf(m.Address) == ip && m.State == "alive" {
				return "a member"
			}
		}
	}
	return ""
}

// openPort are commands that open ports, for the usual firewalls.
func openPort(ports ...string) string {
	var ufw, firewalld []string
	for _, p := range ports {
		ufw = append(ufw, "ufw allow "+p)
		firewalld = append(firewalld, "--add-port="+p)
	}
	return fmt.Sprintf("`%s`, or `firewall-cmd --permanent %s && firewall-cmd --reload`, or the equivalent of your firewall",
		strings.Join(ufw, " && "), strings.Join(firewalld, " "))
}

func dialWhy(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to it"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	}
	return err.Error()
}

// ownAddress reports whether an IP address is one of this host's.
func ownAddress(ip string) bool {
	want, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if got, ok := netip.AddrFromSlice(n.IP); ok && got.Unmap() == want.Unmap() {
				return true
			}
		}
	}
	return false
}
