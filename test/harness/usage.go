package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/procfs"
)

// EnvList is a list of words from an environment variable, or from fallback where that is
// empty.
func EnvList(name, fallback string) []string {
	if v := os.Getenv(name); v != "" {
		return strings.Fields(v)
	}
	return strings.Fields(fallback)
}

// LinkBytes counts what came and went on the host's link.
func LinkBytes(h *Host) (received, sent float64) {
	h.T.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", h.PID))
	if err != nil {
		h.T.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
			f := strings.Fields(rest)
			received, _ = strconv.ParseFloat(f[0], 64)
			sent, _ = strconv.ParseFloat(f[8], 64)
		}
	}
	return received, sent
}

// CPUSeconds is what a process has used.
func CPUSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.CPUTime()
}

// PeakRSS is the most memory that a process has had resident, in bytes.
func PeakRSS(t *testing.T, pid int) float64 {
	t.Helper()
	return statusBytes(t, pid, "VmHWM:")
}

// ResetPeakRSS lets what PeakRSS says of a process begin anew: proc_pid_clear_refs(5).
func ResetPeakRSS(t *testing.T, pid int) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// ResidentBytes is the memory that a process has resident.
func ResidentBytes(t *testing.T, pid int) float64 {
	t.Helper()
	return statusBytes(t, pid, "VmRSS:")
}

func statusBytes(t *testing.T, pid int, field string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb * 1024
		}
	}
	return 0
}

// OpenFiles counts what a daemon has open, by what it is.
func OpenFiles(d *Daemon) map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", d.PID)
	entries, _ := os.ReadDir(dir)
	out := map[string]int{}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		kind, _, found := strings.Cut(to, ":")
		if !found {
			kind = "file"
		}
		if kind == "anon_inode" {
			kind = to
		}
		out[kind]++
	}
	return out
}

// WantCache fails a test that needs seeder's cache where the disk of its hosts is so full
// that there is none: seeder leaves 17 % of a disk free, before the kubelet removes images.
func WantCache(t *testing.T) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(os.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	if free := 100 * float64(st.Bavail) / float64(st.Blocks); free < 19 {
		t.Fatalf("%.0f %% of the disk of %s are free, and below 17 %% seeder keeps neither frames nor deltas: free 20 %%, or set TMPDIR to a directory of another disk", free, os.TempDir())
	}
}
