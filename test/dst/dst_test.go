package dst

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of TestSimulation and, from childCourse on, of the process that it
// starts for each course.
const (
	envSeed    = "DST_SEED"    // of the first course; the next ones count up from it
	envCourses = "DST_COURSES" // how many
	envRounds  = "DST_ROUNDS"  // of each
	envReplay  = "DST_COURSE"  // a file with a course to run instead
	envShrink  = "DST_SHRINK"  // how many seconds a course that fails is made shorter
	envLog     = "DST_LOG"     // files for all that the nodes said: this name, a dot and the seed

	childCourse = "DST_CHILD_COURSE"
	childResult = "DST_CHILD_RESULT"
	childMounts = "DST_CHILD_MOUNTS"
	childDir    = "DST_CHILD_DIR"
)

const (
	// fixedSeed is what every run of the tests goes through, besides a fresh one.
	fixedSeed = 20261129
	// courseBound is how long a course may take in real time, also where others use the
	// machine: one that spins never ends.
	courseBound = 15 * time.Minute
)

// TestSimulation runs courses, each in a process of its own. Without a seed these are
// two short ones: of a fixed seed, and of a fresh one, which is printed.
func TestSimulation(t *testing.T) {
	rounds := number(t, envRounds, 4)
	var seeds []uint64
	if s := os.Getenv(envSeed); s != "" {
		first := uint64(number(t, envSeed, 0))
		for i := range number(t, envCourses, 1) {
			seeds = append(seeds, first+uint64(i))
		}
	} else {
		var b [4]byte
		rand.Read(b[:])
		seeds = []uint64{fixedSeed, uint64(binary.LittleEndian.Uint32(b[:]))}
	}
	courses := make([]Course, 0, len(seeds))
	for _, s := range seeds {
		courses = append(courses, draw(s, rounds))
	}
	if path := os.Getenv(envReplay); path != "" {
		c, err := readCourse(path)
		if err != nil {
			t.Fatal(err)
		}
		courses = []Course{c}
	}
	var (
		sum  Result
		mu   sync.Mutex
		wg   sync.WaitGroup
		slot = make(chan struct{}, runtime.GOMAXPROCS(0))
	)
	for i, c := range courses {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			log := os.Getenv(envLog)
			if log != "" {
				log = fmt.Sprintf("%s.%d", log, c.Seed)
			}
			r := runCourse(t, c, log)
			faults, _ := r.Faults()
			mu.Lock()
			defer mu.Unlock()
			t.Logf("course %d of %d: seed %d, %d nodes, %d rounds, %d events: %d faults, %d violations",
				i+1, len(courses), c.Seed, c.Nodes, len(c.Rounds), c.Events(), faults, len(r.Violations))
			sum.add(r)
			if len(r.Violations) > 0 {
				showFailure(t, c, r)
			}
		})
	}
	wg.Wait()
	t.Logf("\n%s", sum.table())
}

func number(t *testing.T, env string, def int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		t.Fatalf("invalid %s %q: not a number", env, s)
	}
	return n
}

// runCourse runs a course in a process of its own, in a mount namespace where that is
// allowed, and turns its end into a violation where it did not end well.
func runCourse(t *testing.T, c Course, log string) Result {
	t.Helper()
	return runProgram(t, os.Args[0], c, envLog+"="+log)
}

// runProgram is runCourse with a program that is perhaps another one, whose output is
// kept beside its log.
func runProgram(t *testing.T, program string, c Course, env ...string) Result {
	t.Helper()
	dir := t.TempDir()
	course, result, base := filepath.Join(dir, "course.json"), filepath.Join(dir, "result.json"), filepath.Join(dir, "hosts")
	if err := errors.Join(os.WriteFile(course, encode(c), 0o600), os.Mkdir(base, 0o700)); err != nil {
		return Result{Violations: []string{"harness: " + err.Error()}}
	}
	out, err := runChild(t, program, append(env, childCourse+"="+course, childResult+"="+result, childDir+"="+base))
	for _, e := range env {
		if log, ok := strings.CutPrefix(e, envLog+"="); ok && log != "" {
			_ = os.WriteFile(log+".out", out, 0o600)
		}
	}
	var r Result
	b, rerr := os.ReadFile(result)
	if rerr == nil {
		rerr = json.Unmarshal(b, &r)
	}
	if err != nil || rerr != nil {
		r.Violations = append(r.Violations, fmt.Sprintf("the process ended badly: %v, %v\n%s", err, rerr, tail(out)))
	}
	return r
}

// runChild starts a program for one course. Without the right to make mounts it
// runs in a user namespace, without that with none.
func runChild(t *testing.T, program string, env []string) (out []byte, err error) {
	t.Helper()
	attempts := []*syscall.SysProcAttr{
		{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL},
		{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}},
		{Pdeathsig: syscall.SIGKILL},
	}
	for i, attr := range attempts {
		ctx, cancel := context.WithTimeout(t.Context(), courseBound)
		cmd := exec.CommandContext(ctx, program, "-test.run=^TestCourse$", "-test.v", "-test.timeout=0")
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1") // courses run side by side, and are more alike
		cmd.Env = append(cmd.Env, env...)
		if i < len(attempts)-1 {
			cmd.Env = append(cmd.Env, childMounts+"=1")
		}
		cmd.SysProcAttr = attr
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGABRT) } // says where it stands
		cmd.WaitDelay = 5 * time.Second
		out, err = cmd.CombinedOutput()
		late := ctx.Err()
		cancel()
		if !errors.Is(err, syscall.EPERM) {
			if late != nil {
				err = fmt.Errorf("it had not ended after %s: %w", courseBound, err)
			}
			return out, err
		}
	}
	return out, err
}

// tail is the end of an output, where a panic is its beginning.
func tail(out []byte) string {
	s := string(out)
	for _, word := range []string{"panic:", "fatal error:", "SIGABRT", "DATA RACE"} {
		if at := strings.Index(s, word); at >= 0 {
			return s[at:min(len(s), at+6000)]
		}
	}
	return s[max(0, len(s)-6000):]
}

// TestCourse is the process of one course.
func TestCourse(t *testing.T) {
	path := os.Getenv(childCourse)
	if path == "" {
		t.Skip("TestSimulation runs this for each course, in a process of its own")
	}
	course, err := readCourse(path)
	if err != nil {
		t.Fatal(err)
	}
	mounts, base := os.Getenv(childMounts) != "", os.Getenv(childDir)
	if mounts { // nobody else sees what is mounted from here on
		err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", base, "tmpfs", 0, ""))
		if err != nil {
			t.Fatalf("make a file system for the hosts: %v", err)
		}
	}
	log, closer, err := newLog(os.Getenv(envLog))
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	synctest.Test(t, func(*testing.T) {
		c, err := newCluster(course, base, mounts, log)
		if err != nil {
			t.Fatal(err)
		}
		c.run(course)
		c.stop()
		if !mounts {
			c.result.Unavailable = []string{"disk full (no right to mount a file system)"}
		}
		if err := os.WriteFile(os.Getenv(childResult), encode(c.result), 0o600); err != nil {
			t.Fatal(err)
		}
		// The bubble cannot end: each embedded containerd leaves a goroutine of its events
		// behind, which has no end. What else is left is a violation already.
		syscall.Exit(0)
	})
}

// showFailure says what failed, in as few events as still show it.
func showFailure(t *testing.T, c Course, r Result) {
	t.Helper()
	for _, v := range r.Violations {
		t.Errorf("seed %d: %s", c.Seed, v)
	}
	if limit := time.Duration(number(t, envShrink, 180)) * time.Second; limit > 0 {
		shorten(t, c, r, limit)
	}
}
