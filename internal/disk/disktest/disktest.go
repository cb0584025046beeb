// Package disktest cuts the writing of files at every step.
//
// Crashes runs the product's own code in a process of its own, follows what that
// asks of the kernel (ptrace), and from that record makes every state in which a
// kill or a power cut may leave the directory. No hook in the product is needed,
// and none can be forgotten.
package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// State is a directory as a crash left it.
type State struct {
	Dir string
	// Power says that the machine went down, and not only the process.
	Power bool
	// Acked are the words that the work had said before: what it promised.
	Acked []string
	// At says where the cut was, for people.
	At string
}

// Has reports whether the work had said word.
func (s State) Has(word string) bool { return slices.Contains(s.Acked, word) }

// Crashes runs work on a directory that prepare may fill, and calls check for
// every state in which that may be found after a crash: after a kill before each
// step, in the middle of each write, and after power cuts that lose what was not
// synced, in part or in whole. work says by ack what it has promised so far.
func Crashes(t *testing.T, prepare func(dir string), work func(dir string, ack func(word string)), check func(t *testing.T, s State)) {
	t.Helper()
	crashes(t, true, prepare, work, check)
}

// KilledCrashes is Crashes without power cuts, for work on files of others.
func KilledCrashes(t *testing.T, work func(dir string, ack func(word string)), check func(t *testing.T, s State)) {
	t.Helper()
	crashes(t, false, nil, work, check)
}

func crashes(t *testing.T, power bool, prepare func(dir string), work func(dir string, ack func(word string)), check func(t *testing.T, s State)) {
	t.Helper()
	if dir, ok := inChild(t); ok {
		work(dir, ackTo(os.Stdout))
		os.Exit(0)
	}
	dir := TempDir(t)
	if prepare != nil {
		prepare(dir)
	}
	rec := newRecorder(t, dir)
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	logged, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer logged.Close()
	cmd := child(t, dir)
	cmd.Stdout, cmd.Stderr = out, logged
	status, err := trace(cmd, rec)
	if err != nil {
		t.Skipf("cannot follow a process here: %v", err)
	}
	if status != 0 {
		said, _ := os.ReadFile(logged.Name())
		t.Fatalf("the work failed (%#x):\n%s", status, said)
	}
	rec.verify(t)
	states := rec.crashes(power)
	t.Logf("%d steps, %d different states after a crash", len(rec.ops), len(states))
	for _, s := range states {
		d := TempDir(t)
		s.tree.write(t, d)
		s.Dir = d
		check(t, s.State)
		if t.Failed() {
			t.Fatalf("after: %s (power cut: %v, acked: %q), of the steps\n%s", s.At, s.Power, s.Acked, rec)
		}
		os.RemoveAll(d)
	}
}

// Kills starts work in a process of its own and kills it at a random time, rounds
// times on one directory, and calls check after each. work goes on until it is
// killed.
func Kills(t *testing.T, rounds int, within time.Duration, work func(dir string, ack func(word string)), check func(t *testing.T, s State)) {
	t.Helper()
	if dir, ok := inChild(t); ok {
		work(dir, ackTo(os.Stdout))
		os.Exit(1)
	}
	dir := TempDir(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		var out, errs bytes.Buffer
		cmd := child(t, dir)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(r.Int64N(int64(within))), func() { cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
			t.Fatalf("round %d: the work ended by itself: %v\n%s", round, err, errs.String())
		}
		words := strings.Split(out.String(), "\n")
		s := State{Dir: dir, At: fmt.Sprintf("round %d", round)}
		for _, w := range words[:len(words)-1] { // the last one may be half a word
			if w, ok := strings.CutPrefix(w, ackPrefix); ok {
				s.Acked = append(s.Acked, w)
			}
		}
		check(t, s)
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
}

// Alone runs the rest of a test in a process of its own, for what belongs to a
// whole process: it is true in there. Where it is false, the test has run and
// says what the other one said.
func Alone(t *testing.T) bool {
	t.Helper()
	if _, ok := inChild(t); ok {
		return true
	}
	cmd := child(t, "-")
	cmd.Args = append(cmd.Args, "-test.v")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skipf("%s", out)
	}
	return false
}

// LimitFiles lets no file of this process grow beyond bytes until the test ends: a write
// fails there, as it does where a disk is full. It is for a process of its own.
func LimitFiles(t *testing.T, bytes uint64) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	before := limit
	t.Cleanup(func() { // what comes after the tests writes, too: `go test -cover` its counts
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
			t.Error(err)
		}
	})
	limit.Cur = min(bytes, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
}

// NoLimit is the limit that lets files grow again.
const NoLimit = ^uint64(0)

// TempDir is t.TempDir in memory where that can be: thousands of syncs are made
// there, and none of them matters.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "seeder-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const (
	childEnv  = "SEEDER_DISKTEST"
	ackPrefix = "ack:"
)

// inChild reports whether this process was made by child for this test, and the
// directory that it works on.
func inChild(t *testing.T) (dir string, ok bool) {
	name, dir, _ := strings.Cut(os.Getenv(childEnv), " ")
	return dir, name == t.Name()
}

// child runs this test of this program again.
func child(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.Command(exe, "-test.run="+run, "-test.count=1", "-test.timeout=2m")
	tmp, err := os.MkdirTemp("", "seeder-") // it may be killed before it cleans up; t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name()+" "+dir, "TMPDIR="+tmp)
	return cmd
}

// ackTo says each word in one write, which the recorder sees among the others.
func ackTo(f *os.File) func(string) {
	return func(word string) {
		if _, err := f.WriteString(ackPrefix + word + "\n"); err != nil {
			panic(err)
		}
	}
}

// SmallDisk is a file system of its own with room for so many bytes, in a process
// of its own: only the thread of this test sees it, and it ends with that.
// readOnly makes it so. It needs root.
func SmallDisk(t *testing.T, bytes int64) (dir string, readOnly func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a file system of one's own needs root")
	}
	runtime.LockOSThread() // and never unlocked: the thread is spoiled
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("no name space for mounts here: %v", err)
	}
	dir = t.TempDir()
	options := fmt.Sprintf("size=%d", bytes)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("seeder-test", dir, "tmpfs", 0, options))
	t.Cleanup(func() { must(unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir, func() {
		t.Helper()
		must(unix.Mount("seeder-test", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, options))
	}
}

// Fill leaves no room on the disk of dir until it is freed.
func Fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filled")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
