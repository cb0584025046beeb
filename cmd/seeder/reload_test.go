package main

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
)

// limits notes what a node's limits were set to.
type limits [2]int64

func (l *limits) SetLimits(upload, download int64) { *l = limits{upload, download} }

func TestReload(t *testing.T) {
	t.Parallel()
	load := func(yaml string) loaded {
		t.Helper()
		l, err := loadWith(t, yaml, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var now loaded
	var bad error
	var set limits
	r := &reloader{
		load: func() (loaded, error) { return now, bad }, node: &set, level: &slog.LevelVar{},
		log: slog.New(slog.DiscardHandler), last: load(""),
	}
	keys := func(list []setting) (out []string) {
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
