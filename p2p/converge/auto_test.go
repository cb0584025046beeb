package converge

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestAutoSaysWhatItIgnores: an image under another way to write its reference is found
// by the reference. What is not announced for its name is logged, once: an invalid name,
// and another build than the one that the reference stands for.
func TestAutoSaysWhatItIgnores(t *testing.T) {
	t.Parallel()
	old, build := digest.FromString("old"), digest.FromString("new")
	const full = "docker.io/library/app:latest"
	for name, want := range map[string]string{
		"app": full, "app:latest": full, "index.docker.io/library/app:latest": full,
		"UPPER/App:1": "invalid reference",
	} {
		for _, beside := range []bool{false, true} {
			var log bytes.Buffer
			au := newAuto(Config{AutoLocal: true, Log: slog.New(slog.NewTextHandler(&log, nil))}, time.Now())
			have := map[string]digest.Digest{name: build}
			if beside {
				have[full] = old
			}
			out := au.underNormalNames(have)
			au.underNormalNames(have)
			lines := strings.Count(log.String(), "msg=")
			switch {
			case want != full && (lines != 1 || !strings.Contains(log.String(), want) || !strings.Contains(log.String(), name)):
				t.Errorf("%s: %s", name, log.String())
			case want == full && !beside && (out[full] != build || lines != 0):
				t.Errorf("%s: %v, %s", name, out, log.String())
			case want == full && beside && (out[full] != old || lines != 1 || !strings.Contains(log.String(), "seeder announce "+full)):
				t.Errorf("%s beside another build: %v, %s", name, out, log.String())
			}
		}
	}
}
