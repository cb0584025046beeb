package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/k3s"
)

// checkConfig looks at the configuration that the daemon would find, and at what of
// it is not applied.
func (e *exam) checkConfig(ctx context.Context) []finding {
	if errors.Is(e.configErr, fs.ErrPermission) {
		return one(needsRoot("config", ""))
	}
	if e.configErr != nil {
		return one(finding{Name: "config", State: stateProblem, Detail: e.configErr.Error(),
			Fix: "correct it until `seeder config check` reports no error; then `systemctl restart seeder`"})
	}
	var out []finding
	for _, w := range e.loaded.Warnings {
		out = append(out, finding{Name: "config", State: StateWarning, Detail: w, Fix: "unset it, or correct its name"})
	}
	if d, err := e.ask(ctx); err == nil {
		for _, s := range d.Pending.Reload {
			out = append(out, finding{Name: "config", State: StateWarning, Subject: s.Key,
				Detail: fmt.Sprintf("%v (%s) is not applied yet", s.Value, s.Source), Fix: "seeder reload"})
		}
		for _, s := range d.Pending.Restart {
			out = append(out, finding{Name: "config", State: StateWarning, Subject: s.Key,
				Detail: fmt.Sprintf("%v (%s) is not applied yet", s.Value, s.Source), Fix: "systemctl restart seeder"})
		}
	}
	if len(out) == 0 {
		detail := "valid"
		if e.running(ctx) {
			detail = "valid and in use by the daemon"
		}
		out = one(finding{Name: "config", State: StateOK, Detail: detail})
	}
	return out
}

// checkDaemon says whether the daemon runs, and why not where that can be found out.
func (e *exam) checkDaemon(ctx context.Context) []finding {
	f := finding{Name: "daemon", State: StateOK, Subject: e.client.Socket}
	d, err := e.ask(ctx)
	switch {
	case err == nil && d.Version != cli.Version():
		f.State, f.Detail = StateWarning, fmt.Sprintf("it is version %s, this command %s", d.Version, cli.Version())
		f.Fix = "systemctl restart seeder"
	case err == nil:
		f.Detail = "version " + d.Version
	case errors.Is(err, context.DeadlineExceeded):
		f.State, f.Detail = stateProblem, fmt.Sprintf("it hangs: no answer within %s", askedTimeout)
		f.Fix = "systemctl restart seeder; what it did is in `journalctl -u seeder`"
	case errors.Is(err, fs.ErrPermission):
		f = needsRoot(f.Name, f.Subject)
	case cli.ExitCode(err) == cli.ExitNoDaemon:
		f.State = stateProblem
		f.Detail, f.Fix = e.whyNotRunning(ctx)
	default:
		f.State, f.Detail = stateProblem, "it has another version than this command: "+err.Error()
		f.Fix = "systemctl restart seeder"
	}
	return one(f)
}

// whyNotRunning is what keeps a daemon from starting, as far as it shows, and what
// helps.
func (e *exam) whyNotRunning(ctx context.Context) (detail, fix string) {
	detail = "the daemon is not running"
	var whys []string
	if e.configErr != nil {
		whys = append(whys, "its configuration is invalid (see config, above)")
	} else if _, err := k3s.LoadSecrets(e.loaded.Config, e.root); err != nil {
		whys = append(whys, "it has no usable secret (see secret, below)")
	}
	for _, f := range e.portFindings() {
		if f.State == stateProblem {
			whys = append(whys, f.Subject+": "+f.Detail)
		}
	}
	if err := usable(e.loaded.DataDir); err != nil {
		whys = append(whys, fmt.Sprintf("data_dir %s: %v", e.loaded.DataDir, err))
	}
	unit := askUnit(ctx)
	if len(whys) == 0 && unit.status != "" {
		whys = append(whys, "its last status: "+unit.status)
	}
	switch {
	case len(whys) > 0:
		return detail + ": " + strings.Join(whys, "; "), "fix that, then `systemctl restart seeder`; `journalctl -u seeder` has the rest"
	case unit.state == "failed":
		return detail + ": its unit has failed", "journalctl -u seeder -n 50, then `systemctl restart seeder`"
	case unit.state == "not-found":
		return detail + ": the unit seeder.service is missing", "install seeder's package, or start `seeder daemon`"
	}
	return detail, "systemctl enable --now seeder"
}

// usable says why the daemon could not use its directory.
func usable(dir string) error {
	err := syscall.Access(dir, 2|1) // W_OK|X_OK
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it makes it
	}
	if info, serr := os.Stat(dir); serr == nil && !info.IsDir() {
		err = errors.New("it is not a directory")
	}
	return err
}

type unit struct{ state, status string }

// askUnit asks systemd for the unit, where there is one.
func askUnit(ctx context.Context) (u unit) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", "show", "seeder.service", "-p", "LoadState,ActiveState,StatusText")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return u
	}
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "ActiveState":
			if u.state == "" {
				u.state = value
			}
		case "LoadState":
			if value == "not-found" {
				u.state = value
			}
		case "StatusText":
			u.status = value
		}
	}
	return u
}

// checkPorts looks for another process on the daemon's ports while it does not run:
// one that runs has them.
func (e *exam) checkPorts(ctx context.Context) []finding {
	if _, err := e.ask(ctx); errors.Is(err, fs.ErrPermission) { // it may run, or not
		return one(needsRoot("ports", ""))
	}
	if e.running(ctx) {
		return one(finding{Name: "ports", State: StateOK, Detail: "the daemon has them"})
	}
	return e.portFindings()
}

// portFindings tries the ports, once: two tries at the same time would take them for
// each other's.
func (e *exam) portFindings() []finding {
	e.portsOnce.Do(func() { e.ports = e.tryPorts(e.loaded.Config) })
	return e.ports
}

func (e *exam) tryPorts(cfg config.Config) []finding {
	var out []finding
	for _, p := range []struct{ key, network, address string }{
		{"gossip.bind", "udp", cfg.Gossip.Bind},
		{"transfer.bind", "tcp", cfg.Transfer.Bind}, {"http.bind", "tcp", cfg.HTTP.Bind},
	} {
		if p.address == "" {
			continue
		}
		f := finding{Name: "ports", State: StateOK, Subject: fmt.Sprintf("%s %s/%s", p.key, p.address, p.network), Detail: "free"}
		switch err := tryListen(p.network, p.address); {
		case errors.Is(err, syscall.EADDRINUSE):
			f.State = stateProblem
			f.Detail = "another process has the port: " + e.portOwner(p.network, p.address)
			f.Fix = fmt.Sprintf("stop it, or set %s to a free port on all hosts (`ss -lntup` shows who has which)", p.key)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			f.State, f.Detail = stateProblem, "this host has no such address"
			f.Fix = fmt.Sprintf("set %s to one of `ip -brief address`, or to 0.0.0.0 with its port", p.key)
		case err != nil:
			f.State, f.Detail, f.Fix = stateProblem, err.Error(), "set "+p.key+" to an address of this host and a port that may be used"
		}
		out = append(out, f)
	}
	return out
}

// tryListen opens a port and closes it.
func tryListen(network, address string) error {
	if network == "udp" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	return l.Close()
}

const unknownOwner = "its name is not visible from here"

// portOwner names the process that has a port: its socket is found in /proc/net, and
// the process by its open files (proc(5)).
func (e *exam) portOwner(network, address string) string {
	_, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	proc, ferr := procfs.NewFS(filepath.Join(e.root, "proc"))
	if errors.Join(err, perr, ferr) != nil {
		return unknownOwner
	}
	sockets := listeners(proc, network, n)
	processes, err := proc.AllProcs()
	if err != nil {
		return unknownOwner
	}
	for _, p := range processes {
		files, err := p.FileDescriptorTargets()
		if err == nil && slices.ContainsFunc(files, func(to string) bool { return sockets[to] }) {
			name, _ := p.Comm()
			return fmt.Sprintf("%s (pid %d)", name, p.PID)
		}
	}
	return unknownOwner
}

// listeners are the sockets that are bound to a port and have no peer, as the links of
// open files call them. What cannot be read, as IPv6 where there is none, has none.
func listeners(proc procfs.FS, network string, port uint64) map[string]bool {
	const listening, unconnected = 0x0A, 0x07 // TCP_LISTEN, and TCP_CLOSE for a UDP socket
	var lines procfs.NetTCP
	state := uint64(listening)
	switch network {
	case "tcp":
		//lint:ignore SA1019 netlink's list of sockets needs inet_diag, a module that a kernel may lack; one question costs little
		v4, _ := proc.NetTCP()
		//lint:ignore SA1019 as above
		v6, _ := proc.NetTCP6()
		lines = slices.Concat(v4, v6)
	case "udp":
		v4, _ := proc.NetUDP()
		v6, _ := proc.NetUDP6()
		lines, state = procfs.NetTCP(slices.Concat(v4, v6)), unconnected
	}
	out := map[string]bool{}
	for _, l := range lines {
		if l.St == state && l.LocalPort == port {
			out[fmt.Sprintf("socket:[%d]", l.Inode)] = true
		}
	}
	return out
}
