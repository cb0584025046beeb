package hosts

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// clockFile is where a host's seeder from jumpProgram reads by how many seconds
// its wall clock is off, when it starts and at each SIGUSR2.
const clockFile = "/run/clock"

// jumpProgram builds seeder with a wall clock that a test can set: the machine has
// one clock for all its namespaces, and other people use it. What time.Now returns
// is off by some seconds; the monotonic clock and timers go on as they do when a
// real clock is set. Nothing else differs from bin/seeder.
func jumpProgram(t *testing.T) string {
	t.Helper()
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	const jumped = "var testJump int64\n\n// SetTestJump is the test's.\nfunc SetTestJump(seconds int64) { testJump = seconds }\n\n" + now + "\tsec += testJump\n"
	const signals = `package main

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	jump := func() {
		b, _ := os.ReadFile("` + clockFile + `")
		seconds, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		time.SetTestJump(seconds)
	}
	jump()
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR2)
	go func() {
		for range c {
			jump()
		}
	}()
}
`
	root := strings.TrimSpace(harness.Run(t, exec.Command("go", "env", "GOROOT")))
	source := filepath.Join(root, "src/time/time.go")
	b, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), now) != 1 {
		t.Fatalf("%s: time.Now is not what this test changes; look at it and fix the test", source)
	}
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	command, err := filepath.Abs("../../cmd/seeder/jump_overlay.go")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		source:  write("time.go", strings.Replace(string(b), now, jumped, 1)),
		command: write("jump.go", signals),
	}})
	if err != nil {
		t.Fatal(err)
	}
	// The same paths each time, so that go finds what it built before.
	out, err := filepath.Abs("../../bin/seeder-jump")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-overlay", write("overlay.json", string(overlay)), "-o", out, "./cmd/seeder")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	harness.Run(t, build)
	return out
}

// jump sets the host's wall clock off from the machine's, for the seeder that runs
// and those that are started later.
func jump(h *harness.Host, by time.Duration) {
	h.T.Helper()
	h.Write(clockFile, strconv.Itoa(int(by.Seconds())), 0o644)
	if h.Seeder != nil {
		syscall.Kill(h.Seeder.PID, syscall.SIGUSR2)
	}
}
