package control

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSilentLink: an upload ends where the other side takes every byte and answers nothing.
func TestSilentLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		c := DialThrough("node1", func(context.Context) (net.Conn, error) { return near, nil }, func(err error) error { return err })
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/v2/pushed/blobs/uploads/", strings.NewReader(strings.Repeat("x", 1<<20)))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if took := time.Since(start); err == nil || took > remoteSilence+remotePatience {
			t.Errorf("it ended after %s with %v", took, err)
		}
	})
}
