// Package sockettest serves gRPC on a unix socket in tests, as containerd does.
//
// It owns the socket and the server. It never knows which services are served.
// Invariant: when the test ends, nothing of them is left.
package sockettest

import (
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Serve serves what register registers until the test ends, and returns the path of the
// socket.
func Serve(t testing.TB, register func(*grpc.Server), opts ...grpc.ServerOption) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "containerd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	register(g)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// Dial is a connection to what Serve serves, closed when the test ends.
func Dial(t testing.TB, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+Serve(t, register, opts...), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
