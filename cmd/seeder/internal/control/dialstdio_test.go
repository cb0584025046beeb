package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
)

// dialStdio runs the command against socket.
func dialStdio(t *testing.T, socket string, in io.Reader, out io.Writer) error {
	t.Helper()
	env := &cli.Env{Stdin: in, Stdout: out, Stderr: io.Discard, Socket: socket,
		LookupEnv: func(string) (string, bool) { return "", false }, Environ: func() []string { return nil }}
	cmd := DialStdio(env)
	cmd.SetArgs([]string{"--socket", socket})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.ExecuteContext(t.Context())
}

func listenUnix(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

// TestDialStdioHalfCloses: the end of standard input is the end of that half alone. What the
// daemon answers after it arrives.
func TestDialStdioHalfCloses(t *testing.T) {
	t.Parallel()
	l, path := listenUnix(t)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn) // ends with the half that is closed
		conn.Write([]byte("got " + string(b)))
	}()
	var out bytes.Buffer
	if err := dialStdio(t, path, strings.NewReader(strings.Repeat("x", 1<<20)), &out); err != nil {
		t.Fatal(err)
	}
	if want := "got " + strings.Repeat("x", 1<<20); out.String() != want {
		t.Errorf("%d bytes came, want %d", out.Len(), len(want))
	}
}

// TestDialStdioEndsWithTheDaemon: it waits for no input of a client that has nothing more to
// say, and the reader of its output sees the end.
func TestDialStdioEndsWithTheDaemon(t *testing.T) {
	t.Parallel()
	l, path := listenUnix(t)
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.Write([]byte("bye"))
			conn.Close()
		}
	}()
	in, never, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { never.Close() })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dialStdio(t, path, in, w); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); string(b) != "bye" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

// TestDialStdioWithoutDaemon: the exit code is that of every command.
func TestDialStdioWithoutDaemon(t *testing.T) {
	t.Parallel()
	err := dialStdio(t, filepath.Join(t.TempDir(), "none"), strings.NewReader(""), io.Discard)
	if cli.ExitCode(err) != cli.ExitNoDaemon || !strings.Contains(err.Error(), "no seeder daemon answers on ") {
		t.Errorf("%v, exit code %d", err, cli.ExitCode(err))
	}
}

// TestDialStdioIsInterrupted: a signal ends it while both ends are silent.
func TestDialStdioIsInterrupted(t *testing.T) {
	t.Parallel()
	l, path := listenUnix(t)
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	in, never := io.Pipe()
	defer never.Close()
	cancel()
	if err := join(ctx, conn.(*net.UnixConn), in, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was interrupted", err)
	}
}
