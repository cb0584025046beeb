// Package reload applies a changed configuration to a running daemon, as far as that goes
// without a restart.
//
// It owns which configuration and which secrets are in use, and what differs from them on
// disk. It never applies half of a configuration that is invalid, and never changes secrets
// without being asked: which hosts have the new one already only people know.
//
// Invariant: what it reports as pending is what the next reload would apply.
package reload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"sync"
	"syscall"
	"time"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/p2p/trust"
)

// reloadable is what changes of a node while it runs.
type reloadable interface {
	SetLimits(upload, download int64)
	SetSecrets(secrets trust.Secrets) error
}

// Reloader brings a changed configuration into force, as far as that goes without
// a restart: the transfer limits, the level of the log, and the secrets. It is safe
// for concurrent use.
type Reloader struct {
	Load    func() (config.Loaded, error)
	Secrets func(config.Config) (k3s.FoundSecrets, error)
	Node    reloadable
	Level   *slog.LevelVar
	Log     *slog.Logger

	mu      sync.Mutex
	Last    config.Loaded    // what is in use, or will be after a restart
	Held    k3s.FoundSecrets // the secrets in use
	pending string           // in what the secret on disk differs from those, empty where it does not
}

// Reload reads the configuration. One that is bad changes nothing.
func (r *Reloader) Reload() (control.Reloaded, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := control.Reloaded{Applied: []config.Setting{}, Restart: []config.Setting{}}
	next, err := r.Load()
	if err != nil {
		return out, fmt.Errorf("failed to reload; still using the previous configuration: %w", err)
	}
	upload, err := config.ParseRate(next.Transfer.UploadLimit)
	if err != nil {
		return out, fmt.Errorf("transfer.upload_limit: %w", err)
	}
	download, err := config.ParseRate(next.Transfer.DownloadLimit)
	if err != nil {
		return out, fmt.Errorf("transfer.download_limit: %w", err)
	}
	if err := config.SetLevel(r.Level, next.Log.Level); err != nil {
		return out, err
	}
	if err := r.changeSecrets(next.Config, &out); err != nil {
		return out, err
	}
	r.compareSecret(next.Config)
	r.Node.SetLimits(upload, download)
	for i, s := range next.Settings {
		switch {
		case reflect.DeepEqual(s.Value, r.Last.Settings[i].Value):
		case reloads(s.Key):
			out.Applied = append(out.Applied, s)
			r.Log.Info("configuration changed", "key", s.Key, "value", s.Value, "source", s.Source)
		default:
			out.Restart = append(out.Restart, s)
			r.Log.Warn("configuration changed; restart the daemon to apply it", "key", s.Key, "value", s.Value, "source", s.Source)
		}
	}
	for _, w := range next.Warnings {
		r.Log.Warn(w)
	}
	for _, s := range out.Applied {
		r.Last.Set(s)
	}
	return out, nil
}

// changeSecrets brings what is in the secret file now into force.
func (r *Reloader) changeSecrets(cfg config.Config, out *control.Reloaded) error {
	f, err := r.Secrets(cfg)
	switch {
	case err != nil:
		return fmt.Errorf("failed to reload; still using the previous configuration: %w", err)
	case f.Alone && r.Held.Alone:
		return nil // it had none before
	case f.Alone:
		return errors.New("the secret file or the k3s token is missing; still using the previous secrets: restore it, or restart the daemon to run alone")
	case r.Held.Alone:
		out.Restart = append(out.Restart, config.Setting{Key: "secret", Value: "found", Source: "the secret file"})
		r.Log.Warn("found a secret; restart the daemon to apply it")
		return nil
	case f.Note != "":
		r.Log.Warn(f.Note)
	}
	if f.Secrets.Equal(r.Held.Secrets) {
		return nil
	}
	if err := r.Node.SetSecrets(f.Secrets); err != nil {
		return fmt.Errorf("change the secrets: %w", err)
	}
	r.Held = f
	out.Applied = append(out.Applied, config.Setting{Key: "secret", Value: "another one", Source: fmt.Sprintf("%d in all; the first is used, all are accepted", len(f.Secrets))})
	r.Log.Info("secrets changed; the first is used, all are accepted", "secrets", len(f.Secrets))
	return nil
}

// secretInterval is how often it is looked whether the secret on disk is still the one
// in use. It costs some fifty system calls.
const secretInterval = 30 * time.Second

// WatchSecret says so when the secret on disk becomes another one than that in use,
// as when the k3s token was rotated, until ctx ends. It changes nothing: which hosts
// have the new one already only people know, and a host that goes ahead of the others
// leaves them. But a host that is restarted does go ahead, so it must not go unseen.
func (r *Reloader) WatchSecret(ctx context.Context) {
	tick := time.NewTicker(secretInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.mu.Lock()
			r.compareSecret(r.Last.Config)
			r.mu.Unlock()
		}
	}
}

// SecretChanged reports whether the secret on disk is another one than that in use,
// as far as watchSecret has seen.
func (r *Reloader) SecretChanged() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending != ""
}

// differs reports whether f is another secret than that in use. mu is held.
func (r *Reloader) differs(f k3s.FoundSecrets) bool {
	if f.Alone || r.Held.Alone {
		return f.Alone != r.Held.Alone
	}
	return !f.Secrets.Equal(r.Held.Secrets)
}

// compareSecret notes how the secret on disk differs from that in use, and logs it
// once. mu is held.
func (r *Reloader) compareSecret(cfg config.Config) {
	f, err := r.Secrets(cfg)
	pending := ""
	switch {
	case err != nil:
		pending = err.Error()
	case !r.differs(f):
	case f.Alone:
		pending = "it was removed; restore it, since the daemon does not start without it"
	case r.Held.Alone:
		pending = "found in " + f.Source + "; restart the daemon to apply it"
	default:
		pending = f.Source + " has a different one; once all hosts have it, run `seeder reload` on every host. A host that restarts before that is cut off from the others (docs/security.md)"
	}
	if pending == r.pending {
		return
	}
	if r.pending = pending; pending == "" {
		r.Log.Info("cluster secret on disk is the one in use again")
		return
	}
	r.Log.Warn("cluster secret changed on disk; still using the previous one", "secret", pending)
}

// Pending is what a reload would find. It changes nothing.
func (r *Reloader) Pending() control.Pending {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := control.Pending{Config: r.Last.Config, Reload: []config.Setting{}, Restart: []config.Setting{}, Held: r.Held.Source}
	next, err := r.Load()
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for i, s := range next.Settings {
		switch {
		case reflect.DeepEqual(s.Value, r.Last.Settings[i].Value):
		case reloads(s.Key):
			out.Reload = append(out.Reload, s)
		default:
			out.Restart = append(out.Restart, s)
		}
	}
	f, err := r.Secrets(next.Config)
	switch {
	case err != nil:
		out.Error = err.Error()
	case r.differs(f):
		out.Secret = f.Source
	}
	return out
}

// reloads reports whether a key changes without a restart.
func reloads(key string) bool {
	return key == "transfer.upload_limit" || key == "transfer.download_limit" || key == "log.level"
}

// OnSignal reloads at each SIGHUP until ctx ends.
func (r *Reloader) OnSignal(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if _, err := r.Reload(); err != nil {
				r.Log.Error("failed to reload", "err", err)
			}
		}
	}
}
