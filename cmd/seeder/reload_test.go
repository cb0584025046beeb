package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
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
	parse := func(lines ...string) found {
		s, err := trust.ParseSecrets([]byte(strings.Join(lines, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		return found{secrets: s}
	}
	alone := found{secrets: parse(one).secrets, alone: true}
	for name, tc := range map[string]struct {
		held, now found
		err       error
		set       int // secrets that the node was given; 0: none
		restart   bool
		wantErr   string
	}{
		"the same":      {held: parse(one), now: parse(one)},
		"one more":      {held: parse(one), now: parse(one, two), set: 2},
		"other order":   {held: parse(one, two), now: parse(two, one), set: 2},
		"one less":      {held: parse(two, one), now: parse(two), set: 1},
		"unreadable":    {held: parse(one), err: errors.New("permission denied"), wantErr: "stays in force: permission denied"},
		"gone":          {held: parse(one), now: alone, wantErr: "is gone"},
		"still alone":   {held: alone, now: alone},
		"no more alone": {held: alone, now: parse(one), restart: true},
	} {
		node := &secretsNode{}
		last, err := configtest.Load(t, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &reloader{
			load: func() (config.Loaded, error) { return last, nil }, node: node, level: &slog.LevelVar{},
			log: slog.New(slog.DiscardHandler), last: last, held: tc.held,
			secrets: func(config.Config) (found, error) { return tc.now, tc.err },
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
	r := &reloader{
		secrets: func(config.Config) (found, error) { return found{alone: true}, nil }, held: found{alone: true},
		load: func() (config.Loaded, error) { return now, bad }, node: &set, level: &slog.LevelVar{},
		log: slog.New(slog.DiscardHandler), last: load(""),
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
		if set != tc.set || r.level.Level() != tc.level {
			t.Errorf("%s: limits %v, level %v", tc.name, set, r.level.Level())
		}
		if a, b := fmt.Sprint(keys(out.Applied)), fmt.Sprint(keys(out.Restart)); a != tc.applied || b != tc.restart {
			t.Errorf("%s: applied %s, restart %s", tc.name, a, b)
		}
	}
}
