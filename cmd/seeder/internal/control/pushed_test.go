package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
)

// TestTooManyPushed: one announcement names as many images as its headers have room for, and
// the daemon takes all of those.
func TestTooManyPushed(t *testing.T) {
	t.Parallel()
	h := &host{Handler: http.NotFoundHandler()}
	server := NewServer(filepath.Join(t.TempDir(), "s"), nil, h, nil, slog.New(slog.DiscardHandler))
	server.Pushes = h
	if err := server.Open(); err != nil {
		t.Fatal(err)
	}
	c := DialThrough("node1", func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", server.path)
	}, func(err error) error { return err })
	images := func(n, length int) (out []string) {
		for i := range n {
			name := fmt.Sprintf("docker.io/library/app%s:v%d", strings.Repeat("x", length), i)
			out = append(out, name+"@"+digest.FromString(name).String())
		}
		return out
	}
	for _, tc := range []struct {
		n, length int
		want      string
	}{
		{400, 0, ""},
		{401, 0, "401 images at once, more than 400"},
		{400, 200, "400 images at once have names of "},
		{178, 200, ""},
	} {
		pushed := images(tc.n, tc.length)
		err := CheckPushed(pushed)
		if tc.want == "" && err != nil || tc.want != "" && (cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%d images: %v, want %q", tc.n, err, tc.want)
		}
		if tc.want != "" {
			continue
		}
		h.announced = nil
		err = c.Stream(t.Context(), http.MethodPost, "/v1/announce", url.Values{"pushed": pushed, "wait": {"false"}, "on": {"zone=a"}}, nil, func(Event) {})
		if err != nil || len(h.announced) != tc.n {
			t.Errorf("%d of %d images are announced, %v", len(h.announced), tc.n, err)
		}
	}
	c.Close()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
