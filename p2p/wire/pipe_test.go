package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// pipes is a network of one address for virtual time: net.Pipe instead of
// sockets. It is the listener, too.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), ended: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

const pipeAddr = "node:7951"

// pipePair is a server and a client joined by pipes, each with its own limits.
func pipePair(t testing.TB, h *handler, server, client Limits) (*Client, *pipes) {
	t.Helper()
	p := newPipes()
	s := NewServer(ServerConfig{Credentials: credentials(t, secret), Handlers: handlers(h), Limiter: NewLimiter(server)})
	c := NewClient(ClientConfig{Credentials: credentials(t, secret), Limiter: NewLimiter(client), DialContext: p.dial})
	serveUntilEnd(t, s, p, c)
	return c, p
}

// scripted is a peer with the right secret that answers each request with fn;
// the connection closes when fn returns. wait blocks until the client is gone.
func scripted(t testing.TB, fn func(w io.Writer, wait func())) *Client {
	t.Helper()
	p := newPipes()
	server := credentials(t, secret).ServerConfig(protocolHTTP)
	c := NewClient(ClientConfig{Credentials: credentials(t, secret), DialContext: p.dial})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := p.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				tc := tls.Server(nc, server)
				defer tc.Close()
				r := bufio.NewReader(tc)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				fn(tc, func() { _, _ = io.Copy(io.Discard, r) })
			})
		}
	})
	t.Cleanup(func() {
		c.Close()
		p.Close()
		wg.Wait()
	})
	return c
}
