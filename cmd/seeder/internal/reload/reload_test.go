package reload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/k3s/k3stest"
	"seeder/p2p/trust"
)

// limits notes what a node's limits were set to.
type limits [2]int64

func (l *limits) SetLimits(upload, download int64) { *l = limits{upload, download} }

func (l *limits) SetSecrets(trust.Secrets) error { panic("the secrets are the same") }

// TestReloadSecrets: the secret file is read again; a bad or missing one changes
// nothing.
func TestReloadSecrets(t *testing.T) {
	t.Parallel()
	const one, two = "the first secret of the cluster", "the second secret of the cluster"
	parse := func(lines ...string) k3s.FoundSecrets {
		s, err := trust.ParseSecrets([]byte(strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return k3s.FoundSecrets{Secrets: s}
	}
	alone := k3s.FoundSecrets{Secrets: parse(one).Secrets, Alone: true}
	for name, tc := range map[string]struct {
		held, now k3s.FoundSecrets
		err       error
		set       int // secrets that the node was given; 0: none
		restart   bool
		wantErr   string
	}{
		"the same":      {held: parse(one), now: parse(one)},
		"one more":      {held: parse(one), now: parse(one, two), set: 2},
		"other order":   {held: parse(one, two), now: parse(two, one), set: 2},
		"one less":      {held: parse(two, one), now: parse(two), set: 1},
		"unreadable":    {held: parse(one), err: errors.New("permission denied"), wantErr: "still using the previous configuration: permission denied"},
		"gone":          {held: parse(one), now: alone, wantErr: "is missing"},
		"still alone":   {held: alone, now: alone},
		"no more alone": {held: alone, now: parse(one), restart: true},
	} {
		node := &secretsNode{}
		last, err := configtest.Load(t, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &Reloader{
			Load: func() (config.Loaded, error) { return last, nil }, Node: node, Level: &slog.LevelVar{},
			Log: slog.New(slog.DiscardHandler), Last: last, Held: tc.held,
			Secrets: func(config.Config) (k3s.FoundSecrets, error) { return tc.now, tc.err },
		}
		out, err := r.Reload()
		if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
			t.Errorf("%s: %v", name, err)
		}
		if len(node.set) != tc.set || (len(out.Applied) > 0) != (tc.set > 0) || (len(out.Restart) > 0) != tc.restart {
			t.Errorf("%s: %d secrets in force, %+v", name, len(node.set), out)
		}
		if b, err := json.Marshal(out); err != nil || strings.Contains(string(b), one) || strings.Contains(string(b), two) {
			t.Errorf("%s: a secret is told: %s %v", name, b, err)
		}
	}
}

type secretsNode struct {
	limits
	set trust.Secrets
}

func (n *secretsNode) SetSecrets(s trust.Secrets) error {
	n.set = s
	return nil
}

func TestReload(t *testing.T) {
	t.Parallel()
	load := func(yaml string) config.Loaded {
		t.Helper()
		l, err := configtest.Load(t, yaml, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var now config.Loaded
	var bad error
	var set limits
	r := &Reloader{
		Secrets: func(config.Config) (k3s.FoundSecrets, error) { return k3s.FoundSecrets{Alone: true}, nil }, Held: k3s.FoundSecrets{Alone: true},
		Load: func() (config.Loaded, error) { return now, bad }, Node: &set, Level: &slog.LevelVar{},
		Log: slog.New(slog.DiscardHandler), Last: load(""),
	}
	keys := func(list []config.Setting) (out []string) {
		for _, s := range list {
			out = append(out, fmt.Sprintf("%s=%v", s.Key, s.Value))
		}
		return out
	}
	for _, tc := range []struct {
		name, yaml       string
		bad              error
		set              limits
		level            slog.Level
		applied, restart string
	}{
		{"limits", "transfer: {upload_limit: 5MiB, download_limit: 1MB}", nil, limits{5 << 20, 1e6}, slog.LevelInfo,
			"[transfer.upload_limit=5MiB transfer.download_limit=1MB]", "[]"},
		{"the same again", "transfer: {upload_limit: 5MiB, download_limit: 1MB}", nil, limits{5 << 20, 1e6}, slog.LevelInfo, "[]", "[]"},
		{"bad", "", errors.New("unknown key"), limits{5 << 20, 1e6}, slog.LevelInfo, "[]", "[]"},
		{"level, and what needs a restart", "log: {level: debug}\nnode_name: other", nil, limits{}, slog.LevelDebug,
			"[transfer.upload_limit=0 transfer.download_limit=0 log.level=debug]", "[node_name=other]"},
		{"still needs a restart", "node_name: other", nil, limits{}, slog.LevelInfo, "[log.level=info]", "[node_name=other]"},
	} {
		now, bad = load(tc.yaml), tc.bad
		out, err := r.Reload()
		if !errors.Is(err, tc.bad) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if set != tc.set || r.Level.Level() != tc.level {
			t.Errorf("%s: limits %v, level %v", tc.name, set, r.Level.Level())
		}
		if a, b := fmt.Sprint(keys(out.Applied)), fmt.Sprint(keys(out.Restart)); a != tc.applied || b != tc.restart {
			t.Errorf("%s: applied %s, restart %s", tc.name, a, b)
		}
	}
}

// TestSecretThatChanges: a secret that becomes another one on disk, as when a k3s token
// is rotated, is said once and shown until it is in use or back.
func TestSecretThatChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		token := func(password string) k3s.FoundSecrets {
			secret, err := new(trust.Stretcher).SecretOfToken([]byte(password))
			if err != nil {
				t.Fatal(err)
			}
			return k3s.FoundSecrets{Secrets: trust.Secrets{secret}, Source: "the token in /etc/k3s.env"}
		}
		var now atomic.Pointer[k3s.FoundSecrets]
		put := func(f k3s.FoundSecrets) { now.Store(&f) }
		held := token(k3stest.TokenPassword)
		put(held)
		last, err := configtest.Load(t, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		r := &Reloader{
			Load: func() (config.Loaded, error) { return last, nil }, Node: &secretsNode{}, Level: &slog.LevelVar{},
			Log: slog.New(slog.NewTextHandler(&log, nil)), Last: last, Held: held,
			Secrets: func(config.Config) (k3s.FoundSecrets, error) {
				if f := now.Load(); f.Source != "" {
					return *f, nil
				}
				return k3s.FoundSecrets{}, fmt.Errorf("read it: %w", io.ErrUnexpectedEOF)
			},
		}
		go r.WatchSecret(t.Context())
		expect := func(what string, changed bool, lines int) {
			t.Helper()
			time.Sleep(3 * secretInterval)
			synctest.Wait()
			if r.SecretChanged() != changed || strings.Count(log.String(), "level=WARN") != lines {
				t.Errorf("%s: changed %v, log:\n%s", what, r.SecretChanged(), log.String())
			}
		}
		expect("as it was", false, 0)
		put(token(k3stest.OtherPassword))
		expect("rotated", true, 1)
		put(held)
		expect("back", false, 1)
		put(k3s.FoundSecrets{})
		expect("unreadable", true, 2)
		put(k3s.FoundSecrets{Alone: true, Source: "none"})
		expect("gone", true, 3)
		put(token(k3stest.OtherPassword))
		expect("rotated again", true, 4)
		if _, err := r.Reload(); err != nil {
			t.Fatal(err)
		}
		expect("reloaded", false, 4)
		clitest.WantAll(t, log.String(), "the token in /etc/k3s.env has a different one", "seeder reload")
		if strings.Contains(log.String(), k3stest.OtherPassword) || strings.Contains(log.String(), k3stest.TokenPassword) {
			t.Error("the log tells the token")
		}
	})
}
