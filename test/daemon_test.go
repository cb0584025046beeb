package test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// daemon is a program that runs on a host.
type daemon struct {
	cmd  *exec.Cmd
	pid  int
	log  *lockedBuffer
	done chan struct{}
}

// start runs a program on the host.
func (h *host) start(env []string, args ...string) *daemon {
	h.t.Helper()
	d := &daemon{log: &lockedBuffer{}, done: make(chan struct{})}
	d.cmd = h.in(context.Background(), args...)
	d.cmd.Env = append(h.env(), env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		h.t.Fatalf("start %v on %s: %v", args, h.name, err)
	}
	go func() { d.cmd.Wait(); close(d.done) }() // network.close waits for it
	d.pid = ended
	eventually(h.t, 5*time.Second, "the process has a child", func() error {
		select {
		case <-d.done: // it ended at once, and was nobody's child by the time it was looked for
			return nil
		default:
		}
		child, err := childOf(d.cmd.Process.Pid)
		if err == nil {
			d.pid = child
		}
		return err
	})
	return d
}

// ended is the pid of a program that ended before anybody saw its own: Linux gives none
// above 4,194,304, so that nothing is sent a signal.
const ended = 1 << 30

// stop sends a signal and waits for the end.
func (d *daemon) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	syscall.Kill(d.pid, sig)
	d.wait(t, 15*time.Second)
}

// wait waits for the end and returns the exit code.
func (d *daemon) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(limit):
		t.Fatalf("process %d does not end; its log ends:\n%s", d.pid, d.log.tail(20))
	}
	return d.cmd.ProcessState.ExitCode()
}

// env is the environment of what runs on the host: temporary files belong to
// the host too.
func (h *host) env() []string {
	return append(os.Environ(), "PATH="+h.bin+":"+os.Getenv("PATH"), "TMPDIR=/var/lib/tmp")
}

// lockedBuffer is a buffer that a process writes while a test reads.
type lockedBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	text []byte // then is called where a write has it
	then func()
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.then != nil && bytes.Contains(p, b.text) {
		b.then()
		b.then = nil
	}
	return b.buf.Write(p)
}

// when calls f once, as soon as a text is written.
func (b *lockedBuffer) when(text string, f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text, b.then = []byte(text), f
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tail is the last n lines.
func (b *lockedBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// eventually waits until ok returns nil.
func eventually(t *testing.T, d time.Duration, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", d, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// TestStartOfWhatEndsAtOnce: a program may be gone before its pid is looked for, as a
// daemon is that finds its port taken.
func TestStartOfWhatEndsAtOnce(t *testing.T) {
	t.Parallel()
	h := newNetwork(t, "").addHost(newest)
	for range 20 {
		if code := h.start(nil, "true").wait(t, 10*time.Second); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
}
