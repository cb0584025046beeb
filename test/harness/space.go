package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a set of namespaces, held by one process.
type Space struct {
	cmd *exec.Cmd
	PID int // of the process inside
	// Cores are those that commands run on, as taskset(1) has them: 0,2-3. Empty: all.
	Cores string

	ended chan struct{} // where somebody else waits for cmd: closed when it has ended
}

// NeedRoot skips a test without root, with the reason.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces, and what `make test` builds; run that as root")
	}
}

// newSpace starts a process in new namespaces that runs setup and then sleeps.
// It dies with this process, and everything inside with it.
func (n *Network) newSpace(name, setup string) *Space {
	n.T.Helper()
	ready := filepath.Join(n.Dir, name+".ready")
	script := fmt.Sprintf("set -e\n%s\ntouch %s\nexec sleep 86400", setup, ready)
	cmd := exec.Command("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL",
		"--propagation", "private", "--mount-proc", "sh", "-c", script)
	out := &LockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.T.Fatalf("make host %s: %v", name, err)
	}
	s := &Space{cmd: cmd}
	n.spaces = append(n.spaces, s)
	Eventually(n.T, 10*time.Second, "host "+name+" is set up", func() error {
		if _, err := os.Stat(ready); err != nil {
			return fmt.Errorf("%w: %s", err, out.String())
		}
		return nil
	})
	s.PID = awaitChild(n.T, cmd.Process.Pid)
	return s
}

// end kills the first process of the pid namespace, and the kernel the rest.
func (s *Space) end() {
	if s.PID != 0 {
		syscall.Kill(s.PID, syscall.SIGKILL)
	}
	s.cmd.Process.Kill()
	if s.ended != nil {
		<-s.ended
		return
	}
	s.cmd.Wait()
}

// In is a command inside the namespaces, on the cores of the space.
func (s *Space) In(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"nsenter", "-t", strconv.Itoa(s.PID), "-a", "--"}, args...)
	if s.Cores != "" {
		args = append([]string{"taskset", "-c", s.Cores}, args...)
	}
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// InNet calls f on a thread that is in the network namespace: sockets that f
// makes stay there. f must not start goroutines that make sockets.
func (s *Space) InNet(f func() error) error {
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.PID))
	if err != nil {
		return err
	}
	defer there.Close()
	runtime.LockOSThread()
	own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err == nil {
		defer own.Close()
		err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked: nobody else gets it
	}
	runtime.UnlockOSThread()
	return err
}

// awaitChild is the one child of a process that lives on.
func awaitChild(t *testing.T, pid int) (child int) {
	t.Helper()
	Eventually(t, 5*time.Second, "the process has a child", func() (err error) {
		child, err = childOf(pid)
		return err
	})
	return child
}

func childOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// killInTheMiddle runs this test in a process of its own, kills it once a
// container runs on its host, and returns how its networks' names begin.
func killInTheMiddle(t *testing.T) (prefix string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "SEEDER_TEST_TO_BE_KILLED=1")
	out := &LockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, io.Discard
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, "the run to be killed is up", func() error {
		if !strings.Contains(out.String(), "up\n") {
			return errors.New(out.Tail(20))
		}
		return nil
	})
	prefix = fmt.Sprintf("%s%d-", namePrefix, cmd.Process.Pid)
	if n := len(processesIn(prefix)); n < 6 { // holders, containerd, seeder, shim, the container
		t.Errorf("only %d processes are there to be left behind: %q", n, traces(prefix))
	}
	cmd.Process.Kill()
	cmd.Wait()
	return prefix
}
