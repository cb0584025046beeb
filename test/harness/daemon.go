package harness

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

// Daemon is a program that runs on a host.
type Daemon struct {
	Cmd  *exec.Cmd
	PID  int
	Log  *LockedBuffer
	Done chan struct{}
}

// Start runs a program on the host.
func (h *Host) Start(env []string, args ...string) *Daemon {
	h.T.Helper()
	d := &Daemon{Log: &LockedBuffer{}, Done: make(chan struct{})}
	d.Cmd = h.In(context.Background(), args...)
	d.Cmd.Env = append(h.Env(), env...)
	d.Cmd.Stdout, d.Cmd.Stderr = d.Log, d.Log
	d.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.Cmd.Start(); err != nil {
		h.T.Fatalf("start %v on %s: %v", args, h.Name, err)
	}
	go func() { d.Cmd.Wait(); close(d.Done) }() // Network.close waits for it
	d.PID = ended
	Eventually(h.T, 5*time.Second, "the process has a child", func() error {
		select {
		case <-d.Done: // it ended at once, and was nobody's child by the time it was looked for
			return nil
		default:
		}
		child, err := childOf(d.Cmd.Process.Pid)
		if err == nil {
			d.PID = child
		}
		return err
	})
	return d
}

// ended is the pid of a program that ended before anybody saw its own: Linux gives none
// above 4,194,304, so that nothing is sent a signal.
const ended = 1 << 30

// Stop sends a signal and waits for the end.
func (d *Daemon) Stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	syscall.Kill(d.PID, sig)
	d.Wait(t, 15*time.Second)
}

// Wait waits for the end and returns the exit code.
func (d *Daemon) Wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-d.Done:
	case <-time.After(limit):
		t.Fatalf("process %d does not end; its log ends:\n%s", d.PID, d.Log.Tail(20))
	}
	return d.Cmd.ProcessState.ExitCode()
}

// Env is the environment of what runs on the host: temporary files belong to
// the host too.
func (h *Host) Env() []string {
	return append(os.Environ(), "PATH="+h.Bin+":"+os.Getenv("PATH"), "TMPDIR=/var/lib/tmp")
}

// LockedBuffer is a buffer that a process writes while a test reads.
type LockedBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	text []byte // then is called where a write has it
	then func()
}

func (b *LockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.then != nil && bytes.Contains(p, b.text) {
		b.then()
		b.then = nil
	}
	return b.buf.Write(p)
}

// When calls f once, as soon as a text is written.
func (b *LockedBuffer) When(text string, f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text, b.then = []byte(text), f
}

// String is all that was written.
func (b *LockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Tail is the last n lines.
func (b *LockedBuffer) Tail(n int) string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Eventually waits until ok returns nil.
func Eventually(t *testing.T, d time.Duration, what string, ok func() error) {
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

// Run runs a command to its end and returns what it printed, to either output.
func Run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// Freeze stops a daemon of the host as it is. Its parent,
// nsenter, stops itself with it.
func (d *Daemon) Freeze() { syscall.Kill(d.PID, syscall.SIGSTOP) }

// Thaw lets a frozen daemon go on.
func (d *Daemon) Thaw() {
	syscall.Kill(d.Cmd.Process.Pid, syscall.SIGCONT)
	syscall.Kill(d.PID, syscall.SIGCONT)
}
