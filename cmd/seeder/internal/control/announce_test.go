package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
)

// host is an Announcer and Pushes that notes what it is asked for.
type host struct {
	http.Handler
	names     []string // of the images of an archive
	imported  []string // REF of each import
	archived  []string // DIGEST of each image that was pushed
	announced []string
	taken     []string // back
}

func (h *host) ImportArchive(_ context.Context, _ io.Reader, ref string) (Imported, error) {
	h.imported = append(h.imported, ref)
	return Imported{Names: h.names, TakeBack: func(ctx context.Context, name string) error {
		h.taken = append(h.taken, name)
		return ctx.Err()
	}}, nil
}
func (h *host) Local(context.Context, string) (Local, error) { return Local{}, nil }
func (h *host) References(context.Context) References        { return References{} }
func (h *host) Announce(_ context.Context, o Order) (Announced, error) {
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
	for events, announced := range []int{0, 1, 1, 2} { // preparing and announced, of each
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
		if !slices.Equal(h.announced, names[:announced]) || !slices.Equal(h.taken, names[announced:]) {
			t.Errorf("after %d events %q is announced and %q taken back; want %d and the rest", events, h.announced, h.taken, announced)
		}
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
