//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/datadir"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/pods"
	"seeder/cmd/seeder/internal/registry"
	"seeder/cmd/seeder/internal/reload"
	"seeder/cmd/seeder/internal/systemd"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/web"
	"seeder/p2p/trust"
)

func daemonCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of this host",
		Long: `Run the daemon of this host. The unit seeder.service starts it. SIGTERM or Ctrl-C shuts
down gracefully within 10 s: the node leaves the cluster first. A second signal exits
immediately. SIGHUP is ` + "`seeder reload`" + `.

Every configuration key is also a flag, and an environment variable with a name like
SEEDER_GOSSIP_BIND. A flag takes precedence over the environment, the environment over
the file, the file over the default. ` + "`seeder config show`" + ` prints the effective values.`,
		Example: "  seeder daemon\n  seeder daemon --config ./seeder.yaml --log-level debug\n  seeder daemon --gossip-join 10.0.0.1,10.0.0.2",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	config.KeyFlags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(env, cmd.Flags())
		if err != nil {
			printWarnings(env, cfg)
			return err
		}
		log, level, err := config.NewLogger(env.Stderr, cfg.Log)
		if err != nil {
			return err
		}
		for _, w := range cfg.Warnings {
			log.Warn(w)
		}
		d := &running{cfg: cfg.Config, log: log}
		d.reload = &reload.Reloader{
			Load: func() (config.Loaded, error) { return config.Load(env, cmd.Flags()) }, Level: level, Log: log, Last: cfg,
			Secrets: func(cfg config.Config) (k3s.FoundSecrets, error) { return d.secrets.Load(cfg, "/") },
		}
		err = d.runBounded(cmd.Context())
		if err != nil {
			systemd.Notify(log, systemd.Status+term.Clean(err.Error()))
		}
		return err
	}
	return cmd
}

// heapBytes is where the runtime collects garbage before the heap has doubled: with the
// program's own 23 MiB the daemon stays below 128 MiB however large the images are that it
// moves. Doubled, what it needs with eight peers came to the former 136 MiB in one run of
// two, which cost no less CPU. GOMEMLIMIT sets another limit.
const heapBytes = 96 << 20

// running is the daemon at work: its parts are opened in order of dependence and
// closed in reverse.
type running struct {
	cfg    config.Config
	log    *slog.Logger
	reload *reload.Reloader
	// secrets remembers what it derived: the file is read every half minute.
	secrets k3s.SecretLoader
	open    []part
	ending  context.CancelFunc // begins the time that the end may take
}

type part struct {
	name  string
	close func() error
}

func (d *running) opened(name string, close func() error) {
	d.open = append(d.open, part{name, close})
}

// stopTimeout bounds the end of the daemon. Each part has bounds of its own that
// together are less; this one is for what nobody thought of.
const stopTimeout = 9 * time.Second

// runBounded is run, except that it does not wait for the parts without a limit:
// what must not be lost is on disk before anybody is told of it.
func (d *running) runBounded(ctx context.Context) error {
	ctx, d.ending = context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }() // if it does not end, the process does
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(stopTimeout):
		return fmt.Errorf("shutdown timed out after %s; exiting now (no data is lost)", stopTimeout)
	}
}

// run opens everything, serves until ctx ends or a part fails, and closes
// everything.
func (d *running) run(ctx context.Context) (err error) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapBytes)
	}
	defer func() {
		d.ending()
		systemd.Notify(d.log, systemd.Stopping)
		err = errors.Join(err, d.close())
	}()
	f, err := d.secrets.Load(d.cfg, "/")
	if err != nil {
		return err
	}
	if f.Note != "" {
		d.log.Warn(f.Note)
	}
	d.log.Info("secret found", "source", f.Source)
	d.reload.Held = f
	unlock, err := datadir.Open(d.cfg.DataDir, d.log)
	if err != nil {
		return err
	}
	d.opened("lock of data_dir", unlock)
	w, err := d.openNode(ctx, f.Secrets)
	if err != nil {
		return err
	}
	w.register(w.node, d.reload.SecretChanged)
	if err := d.openServers(w, w.registry); err != nil {
		return err
	}
	d.log.Info("ready", "node", d.cfg.NodeName, "id", w.node.ID(), "version", cli.Version(),
		"gossip", d.cfg.Gossip.Bind, "transfer", w.node.TransferAddress(), "socket", d.cfg.API.Socket)
	systemd.Notify(d.log, systemd.Ready)
	return d.serve(ctx, w)
}

// openNode opens the store and the node on it.
func (d *running) openNode(ctx context.Context, secrets trust.Secrets) (*wired, error) {
	// What ends the parts is close, in its order, and not the signal.
	ctx = context.WithoutCancel(ctx)
	w, err := wire(ctx, d.cfg, secrets, d.log)
	if err != nil {
		return nil, err
	}
	d.opened("store", w.store.Close)
	if err := w.node.Open(ctx); err != nil {
		return nil, err
	}
	d.opened("node", w.node.Close)
	return w, nil
}

func (d *running) openServers(w *wired, metrics *prometheus.Registry) error {
	d.reload.Node = w.node
	pushes, err := registry.Start(d.cfg, w.node, w, w, d.log)
	if err != nil {
		return err
	}
	d.opened("registry", pushes.Close)
	api := control.NewServer(d.cfg.API.Socket, w.node, w, d.reload, d.log)
	api.Pushes, api.Exports = pushes, w
	if err := api.Open(); err != nil {
		return err
	}
	d.opened("control socket", api.Close)
	if d.cfg.HTTP.Bind == "" {
		return nil
	}
	httpd := web.NewServer(d.cfg.HTTP, w.node, pods.NewWatch("/").Waiting, metrics, d.log)
	if _, err := httpd.Open(); err != nil {
		return err
	}
	d.opened("http listener", httpd.Close)
	return nil
}

// serve waits for the end: ctx, or a part of the node that fails.
func (d *running) serve(ctx context.Context, w *wired) error {
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	go func() { failed <- w.node.Wait() }() // ends with the node, which close waits for
	var group sync.WaitGroup
	group.Go(func() { systemd.FollowStatus(ctx, d.log, w.node) })
	if dog := systemd.NewWatchdog(w.node.Stuck, d.cfg.API.Socket, d.log); dog != nil {
		group.Go(func() { dog.Run(ctx) })
	}
	group.Go(func() { w.rollouts.Run(ctx, w.node) })
	group.Go(func() { d.reload.OnSignal(ctx) })
	group.Go(func() { d.reload.WatchSecret(ctx) })
	defer group.Wait()
	defer cancel()
	defer d.log.Info("stopping")
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// close closes what was opened, last first.
func (d *running) close() error {
	var errs []error
	for i := len(d.open) - 1; i >= 0; i-- {
		p := d.open[i]
		if err := p.close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, fmt.Errorf("close the %s: %w", p.name, err))
		}
	}
	d.open = nil
	return errors.Join(errs...)
}
