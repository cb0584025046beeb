package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemoDiesWithItsNodes: a demo that is killed leaves no process behind.
func TestDemoDiesWithItsNodes(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	cmd := exec.Command("seeder", "demo", "--nodes", "2")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "know each other") {
	}
	if n := len(processesIn(t, tmp)); n != 2 {
		t.Errorf("%d nodes are running, want 2", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	deadline := time.After(10 * time.Second)
	for len(processesIn(t, tmp)) > 0 {
		select {
		case <-deadline:
			t.Fatalf("still running: %v", processesIn(t, tmp))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// processesIn are the processes with dir in their arguments.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), dir) {
			out = append(out, filepath.Dir(f))
		}
	}
	return out
}
