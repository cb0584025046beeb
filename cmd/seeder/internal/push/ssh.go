package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// way is how the host's daemon is reached.
type way struct {
	ssh    []string // program and options
	host   string   // as ssh takes it
	sudo   bool
	seeder string // program on the host, with options
}

// remote is what the host's shell runs. The messages of sudo are read: they are wanted in
// English.
func (w way) remote() string {
	s := w.seeder + " dial-stdio"
	if w.sudo {
		s = "sudo -n " + s
	}
	return "env LC_ALL=C " + s
}

// fields splits a command as shells do, without anything that is expanded.
func fields(command string) ([]string, error) {
	var out []string
	var word strings.Builder
	var quote rune
	in := false
	for _, r := range command {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, in = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if in {
				out = append(out, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 {
		return nil, cli.Usagef("the ssh command %q has a quote that does not end", command)
	}
	if in {
		out = append(out, word.String())
	}
	if len(out) == 0 {
		return nil, cli.Usagef("the ssh command is empty; want a program and its options, e.g. ssh -p 2222")
	}
	return out, nil
}

// tunnel is the connection through one process of ssh. Its owner calls close.
type tunnel struct {
	way    way
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	stderr tail
	sent   atomic.Int64 // bytes
	ended  chan struct{}
	code   int // of the process, once it has ended

	once   sync.Once
	dialed atomic.Bool
	killed atomic.Bool
}

// open starts ssh. A user at a terminal may still be asked for a password there.
func open(ctx context.Context, w way) (*tunnel, error) {
	t := &tunnel{way: w, ended: make(chan struct{})}
	args := append(append([]string{}, w.ssh[1:]...), "--", w.host, w.remote())
	t.cmd = exec.CommandContext(ctx, w.ssh[0], args...)
	t.cmd.Stderr, t.cmd.WaitDelay = &t.stderr, closeGrace // a ControlPersist process keeps it open
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start ssh: %w", err)
	}
	// Not StdoutPipe, which Wait closes before everything is read.
	out, w2, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start ssh: %w", err)
	}
	t.out, t.cmd.Stdout = out, w2
	if err := t.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w; name it by --ssh or SEEDER_SSH", w.ssh[0], err), out.Close(), w2.Close())
	}
	w2.Close() // ssh has it
	go func() {
		defer close(t.ended)
		_ = t.cmd.Wait() // the code says it
		t.code = t.cmd.ProcessState.ExitCode()
	}()
	return t, nil
}

// dial is the tunnel as a connection. There is one.
func (t *tunnel) dial(context.Context) (net.Conn, error) {
	if t.dialed.Swap(true) {
		return nil, errLost
	}
	return conn{t}, nil
}

var errLost = errors.New("the connection was lost")

// closeGrace is how long ssh may take to end by itself.
const closeGrace = 2 * time.Second

// close ends ssh and waits for it.
func (t *tunnel) close() {
	t.once.Do(func() {
		t.in.Close()
		select {
		case <-t.ended:
		case <-time.After(closeGrace):
			t.killed.Store(true)
			_ = t.cmd.Process.Kill() // it may have ended now
			<-t.ended
		}
		t.out.Close()
	})
}

// lost is why there is no connection, or none any more.
func (t *tunnel) lost(err error) error {
	t.in.Close()
	select {
	case <-t.ended:
		if !t.killed.Load() {
			return cli.WithCode(cli.ExitNoDaemon, t.way.explain(t.code, t.stderr.String()))
		}
	case <-time.After(closeGrace):
	}
	return cli.WithCode(cli.ExitNoDaemon, fmt.Errorf("the connection to seeder on %s through ssh: %w", t.way.host, err))
}

// conn is a tunnel as net/http takes it. It needs no deadlines: DialThrough closes it where
// nothing comes for too long.
type conn struct{ *tunnel }

// Close implements net.Conn.
func (c conn) Close() error {
	c.close()
	return nil
}

func (c conn) Read(p []byte) (int, error) { return c.out.Read(p) }

func (c conn) Write(p []byte) (int, error) {
	n, err := c.in.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

func (c conn) LocalAddr() net.Addr              { return addr{} }
func (c conn) RemoteAddr() net.Addr             { return addr{} }
func (c conn) SetDeadline(time.Time) error      { return nil }
func (c conn) SetReadDeadline(time.Time) error  { return nil }
func (c conn) SetWriteDeadline(time.Time) error { return nil }

type addr struct{}

func (addr) Network() string { return "ssh" }
func (addr) String() string  { return "ssh" }

// maxTail bounds what is kept of what ssh says, in bytes.
const maxTail = 8 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if over := t.b.Len() - maxTail; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}

// String is what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.b.String())
}
