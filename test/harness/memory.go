package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MemoryBounds are those of a systemd unit, in bytes.
type MemoryBounds struct {
	High, Max int64
}

// UnitMemory reads MemoryHigh and MemoryMax of a unit file.
func UnitMemory(t *testing.T, unit string) MemoryBounds {
	t.Helper()
	b, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	of := func(key string) int64 {
		m := regexp.MustCompile(`(?m)^` + key + `=(\d+)M$`).FindSubmatch(b)
		if m == nil {
			t.Fatalf("%s has no line %s=…M", unit, key)
		}
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n << 20
	}
	return MemoryBounds{of("MemoryHigh"), of("MemoryMax")}
}

// MemoryGroup is a host's own cgroup with the bounds of a unit, of cgroup v2 or v1.
// v1 has no high mark: there its peak alone says that it was not reached.
type MemoryGroup struct {
	t    *testing.T
	dir  string
	v2   bool
	peak *os.File
	// Enter is the command of a shell on the host that puts the shell in the group.
	Enter string
}

// BoundMemory sets the bounds on the host's cgroup, in which nothing runs yet.
func (h *Host) BoundMemory(b MemoryBounds) *MemoryGroup {
	h.T.Helper()
	g := &MemoryGroup{t: h.T}
	files := map[string]int64{}
	for _, mount := range CgroupMounts() {
		dir := filepath.Join(mount, h.Net.name+"_"+h.Name)
		switch {
		case exists(filepath.Join(dir, "memory.max")):
			g.v2, files["memory.high"], files["memory.max"] = true, b.High, b.Max
		case exists(filepath.Join(dir, "memory.limit_in_bytes")):
			files["memory.limit_in_bytes"] = b.Max
		default:
			continue
		}
		g.dir, g.Enter = dir, "echo 0 >"+mount+"/cgroup.procs"
		break
	}
	if g.dir == "" {
		h.T.Fatal("no cgroup hierarchy of this machine has a controller of memory")
	}
	for name, n := range files {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(strconv.FormatInt(n, 10)), 0o644); err != nil {
			h.T.Fatal(err)
		}
	}
	var err error
	if g.peak, err = os.OpenFile(filepath.Join(g.dir, g.name("memory.peak", "memory.max_usage_in_bytes")), os.O_RDWR, 0); err != nil {
		h.T.Fatal(err)
	}
	h.T.Cleanup(func() { g.peak.Close() })
	return g
}

// BoundDisk bounds what a block device reads and writes in a second. The device is the
// host's alone, and the host's processes are in the group. With cgroup v1 what is written
// later, from the page cache, counts for the root group, not for the group that wrote it: a bound on the
// host's group alone holds up fsync and nothing else. So the bound is the root group's
// there, in which all hosts are.
func (g *MemoryGroup) BoundDisk(device string, bytesPerSec int64) {
	g.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		g.t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	set := func(file, bound string) {
		if err := os.WriteFile(file, []byte(number+" "+bound), 0); err != nil {
			g.t.Fatal(err)
		}
	}
	if file := filepath.Join(g.dir, "io.max"); exists(file) {
		set(file, fmt.Sprintf("rbps=%d wbps=%[1]d", bytesPerSec))
		return
	}
	for _, mount := range CgroupMounts() {
		read, write := filepath.Join(mount, "blkio.throttle.read_bps_device"), filepath.Join(mount, "blkio.throttle.write_bps_device")
		if !exists(read) || !exists(write) {
			continue
		}
		for _, file := range []string{read, write} {
			set(file, strconv.FormatInt(bytesPerSec, 10))
			g.t.Cleanup(func() { set(file, "0") })
		}
		return
	}
	g.t.Skip("this machine has neither io.max of cgroup v2 nor blkio.throttle of v1")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (g *MemoryGroup) name(v2, v1 string) string {
	if g.v2 {
		return v2
	}
	return v1
}

// ResetPeak lets the peak begin anew; Linux before 6.12 with cgroup v2 cannot.
func (g *MemoryGroup) ResetPeak() { _, _ = g.peak.WriteString("0") }

// Peak is the most that the kernel has counted for the group: memory, page cache and the
// buffers of sockets.
func (g *MemoryGroup) Peak() int64 {
	g.t.Helper()
	b := make([]byte, 32)
	n, _ := g.peak.ReadAt(b, 0)
	peak, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return peak
}

// Events are what the bounds did so far, by the kernel's name of it; what did not happen
// is not among them.
func (g *MemoryGroup) Events() map[string]int64 {
	g.t.Helper()
	out := map[string]int64{}
	count := func(name, value string) {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			g.t.Fatal(err)
		}
		if n > 0 {
			out[name] = n
		}
	}
	if !g.v2 {
		count("failcnt", strings.TrimSpace(g.read("memory.failcnt")))
	}
	for line := range strings.Lines(g.read(g.name("memory.events", "memory.oom_control"))) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		count(name, value)
	}
	return out
}

func (g *MemoryGroup) read(name string) string {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		g.t.Fatal(fmt.Errorf("read a cgroup's %s: %w", name, err))
	}
	return string(b)
}

// Holds reports whether a process is in the group.
func (g *MemoryGroup) Holds(pid int) bool {
	return slices.Contains(strings.Fields(g.read("cgroup.procs")), strconv.Itoa(pid))
}
