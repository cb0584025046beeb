package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
)

// host is an Announcer and Pushes that notes what it is asked for.
type host struct {
	http.Handler
	mu        sync.Mutex
	names     []string // of the images of an archive
	imported  []string // REF of each import
	archived  []string // DIGEST of each image that was pushed
	announced []string
	taken     []string // back
	lacks     []string // of containerd
}

func (h *host) ImportArchive(_ context.Context, _ io.Reader, ref string) (Imported, error) {
	h.imported = append(h.imported, ref)
	return Imported{Names: h.names, TakeBack: func(ctx context.Context, name string) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.taken = append(h.taken, name)
		return ctx.Err()
	}}, nil
}
func (h *host) Local(_ context.Context, ref string) (Local, error) {
	if slices.Contains(h.lacks, ref) {
		return Local{}, fmt.Errorf("no image %s: %w", ref, fs.ErrNotExist)
	}
	return Local{}, nil
}
func (h *host) References(context.Context) References { return References{} }
func (h *host) Announce(_ context.Context, o Order) (Announced, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced = append(h.announced, o.Ref)
	return Announced{Reference: o.Ref}, nil
}

func (h *host) Archive(_ context.Context, target digest.Digest, _ string) (io.ReadCloser, error) {
	h.archived = append(h.archived, target.String())
	return io.NopCloser(strings.NewReader("")), nil
}
func (h *host) Drop(context.Context, digest.Digest) error { return nil }

// broken is a client that has gone after it read some events.
type broken struct {
	*httptest.ResponseRecorder
	events int
}

// Write implements io.Writer.
func (b *broken) Write(p []byte) (int, error) {
	if b.events--; b.events < 0 {
		return 0, errors.New("gone")
	}
	return b.ResponseRecorder.Write(p)
}

// TestStreamBreaks: of the images of an archive, those that were not announced when the
// client has gone leave nothing behind.
func TestStreamBreaks(t *testing.T) {
	t.Parallel()
	names := []string{"docker.io/library/a:v1", "docker.io/library/b:v1"}
	for events := range 4 { // preparing and announced, of each
		h := &host{names: names}
		c := NewServer("", nil, h, nil, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		orders, _, err := c.orders(ctx, map[string][]string{"archive": {"true"}}, bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		s := newStream(&broken{httptest.NewRecorder(), events})
		if err := c.announce(ctx, s, orders, waiting{}); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%d events: %v", events, err)
		}
		s.end(nil)
		announced := len(names) // both begin at once, as soon as somebody listens
		if events == 0 {
			announced = 0
		}
		if slices.Sort(h.announced); !slices.Equal(h.announced, names[:announced]) || !slices.Equal(h.taken, names[announced:]) {
			t.Errorf("after %d events %q is announced and %q taken back; want %d and the rest", events, h.announced, h.taken, announced)
		}
	}
}

// waits is a host whose containerd answers once so many images are being announced.
type waits struct {
	host
	begun sync.WaitGroup
	more  atomic.Int64
}

func (w *waits) Announce(ctx context.Context, o Order) (Announced, error) {
	if w.more.Add(-1) >= 0 {
		w.begun.Done()
		w.begun.Wait()
	}
	return w.host.Announce(ctx, o)
}

// TestSeveralAtOnce: of several images a few are announced at the same time, and told of in
// their order.
func TestSeveralAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &waits{}
		w.begun.Add(announcing)
		w.more.Store(announcing)
		c := NewServer("", nil, w, nil, slog.New(slog.DiscardHandler))
		orders := make([]order, 2*announcing)
		for i := range orders {
			orders[i].Ref = fmt.Sprintf("docker.io/library/app:v%d", i)
		}
		out := httptest.NewRecorder()
		s := newStream(out)
		if err := c.announce(t.Context(), s, orders, waiting{}); err != nil || len(w.announced) != len(orders) {
			t.Errorf("announced %q: %v", w.announced, err)
		}
		s.end(nil)
		for d := json.NewDecoder(out.Body); d.More(); {
			var e Event
			if err := d.Decode(&e); err != nil {
				t.Fatal(err)
			}
			if e.Event == EventAnnounced && e.Ref != orders[0].Ref {
				t.Errorf("told of %s, want %s", e.Ref, orders[0].Ref)
			}
			if e.Event == EventAnnounced {
				orders = orders[1:]
			}
		}
		if len(orders) > 0 {
			t.Errorf("%d images were not told of", len(orders))
		}
	})
}

// TestSeveralOrNone: where containerd lacks some of several images, all of those are named and
// none is announced; one that is alone is for Announce to look for, and so is a rollback.
func TestSeveralOrNone(t *testing.T) {
	t.Parallel()
	h := &host{lacks: []string{"docker.io/library/b:v1", "docker.io/library/d:v1"}}
	c := NewServer("", nil, h, nil, slog.New(slog.DiscardHandler))
	ask := func(q url.Values) error {
		_, _, err := c.orders(t.Context(), q, nil)
		return err
	}
	err := ask(url.Values{"ref": {"a:v1", "b:v1", "c:v1", "d:v1"}})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), h.lacks[0]) || !strings.Contains(err.Error(), h.lacks[1]) {
		t.Errorf("%v, want %q", err, h.lacks)
	}
	if err := errors.Join(ask(url.Values{"ref": {"b:v1"}}), ask(url.Values{"ref": {"b:v1", "c:v1"}, "rollback": {"true"}}), ask(url.Values{"ref": {"a:v1", "c:v1"}})); err != nil {
		t.Error(err)
	}
}

// TestPushedWithDigest: the digest of an image that was pushed is what stands behind the last
// @; its reference may have one, too.
func TestPushedWithDigest(t *testing.T) {
	t.Parallel()
	one := digest.FromString("one").String()
	for image, want := range map[string]string{
		"app:v1@" + one:                   "docker.io/library/app:v1",
		"app@" + one + "@" + one:          "docker.io/library/app@" + one,
		"localhost:5000/app:v2@" + one:    "localhost:5000/app:v2",
		"app@" + one:                      "docker.io/library/app:latest",
		"app:v1":                          "",
		"app@" + one + "@sha256:12":       "",
		"app@sha256:12@" + one:            "",
		"docker.io/library/a b:v1@" + one: "",
	} {
		h := &host{}
		c := NewServer("", nil, h, nil, slog.New(slog.DiscardHandler))
		c.Pushes = h
		orders, err := c.pushed(t.Context(), []string{image}, Order{})
		if want == "" {
			if cli.ExitCode(err) != cli.ExitUsage {
				t.Errorf("%s: %v", image, err)
			}
			continue
		}
		if err != nil || len(orders) != 1 || orders[0].Ref != want || !slices.Equal(h.archived, []string{one}) || !slices.Equal(h.imported, []string{want}) {
			t.Errorf("%s: %v, %v as %q; want %s", image, err, h.archived, h.imported, want)
		}
	}
}
