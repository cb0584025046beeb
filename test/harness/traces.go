package harness

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// namePrefix begins the name of every network: its directory below the
// temporary directory, and its cgroups.
const namePrefix = "seeder-hosts-"

// networkPrefix begins the names of this process's networks.
func networkPrefix() string { return fmt.Sprintf("%s%d-", namePrefix, os.Getpid()) }

// lockNetwork marks a network's name as in use until this process ends, however it
// ends. The lock is an abstract socket: it is seen by runs with another TMPDIR, too, and
// leaves nothing behind.
func lockNetwork(name string) (io.Closer, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@" + name})
	if err != nil {
		return nil, fmt.Errorf("lock the name %s: %w", name, err)
	}
	return l, nil
}

// deadNetworks names the networks whose process is gone.
func deadNetworks() []string {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), namePrefix+"*"))
	for _, m := range CgroupMounts() {
		more, _ := filepath.Glob(filepath.Join(m, namePrefix+"*"))
		dirs = append(dirs, more...)
	}
	var dead []string
	for _, d := range dirs {
		name, _, _ := strings.Cut(filepath.Base(d), "_") // a cgroup's name goes on with the host's
		if !slices.Contains(dead, name) && !inUse(name) {
			dead = append(dead, name)
		}
	}
	return dead
}

// inUse reports whether the process that made a network still runs.
func inUse(name string) bool {
	lock, err := lockNetwork(name)
	if err == nil {
		lock.Close()
	}
	return err != nil
}

// remove ends the processes of a network and removes its directory and cgroups.
func remove(name string) error {
	for _, pid := range processesIn(name) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	var err error
	for range 100 { // the kernel takes a moment to unmount what a dead namespace had
		err = os.RemoveAll(filepath.Join(os.TempDir(), name))
		for _, m := range CgroupMounts() {
			groups, _ := filepath.Glob(filepath.Join(m, name+"_*"))
			for _, g := range groups {
				err = errors.Join(err, removeCgroup(g))
			}
		}
		if err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("remove %s: %w", name, err)
}

// removeCgroup removes a group and those below it, the innermost first. The
// files in them go with the directories.
func removeCgroup(group string) error {
	var dirs []string
	err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		err = errors.Join(err, syscall.Rmdir(d))
	}
	return err
}

// traces lists everything on this machine that carries a name with the prefix:
// directories, cgroups, mounts, processes.
func traces(prefix string) []string {
	var found []string
	for _, parent := range append(CgroupMounts(), os.TempDir()) {
		paths, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
		found = append(found, paths...)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, prefix) {
				found = append(found, "mount "+strings.TrimSpace(line))
			}
		}
	}
	for _, pid := range processesIn(prefix) {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		found = append(found, fmt.Sprintf("process %d %s", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
	}
	return found
}

// processesIn are the processes in the mount namespaces of the hosts of a
// network: what is mounted there carries its name.
func processesIn(prefix string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err == nil && bytes.Contains(mounts, []byte(prefix)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// CgroupMounts are the hierarchies of this machine: one with cgroup v2, one for
// each controller with v1.
func CgroupMounts() []string {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 2 && (w[2] == "cgroup" || w[2] == "cgroup2") {
			out = append(out, w[1])
		}
	}
	return out
}

// NothingIsLeft kills this test in the middle and looks at what is left.
func NothingIsLeft(t *testing.T) {
	t.Helper()
	prefix := killInTheMiddle(t)
	Eventually(t, 15*time.Second, "no process is left", func() error {
		if pids := processesIn(prefix); len(pids) > 0 {
			return fmt.Errorf("%q", traces(prefix))
		}
		return nil
	})
	var mine []string
	for _, name := range deadNetworks() {
		if strings.HasPrefix(name, prefix) {
			mine = append(mine, name)
			if err := remove(name); err != nil {
				t.Error(err)
			}
		}
	}
	if len(mine) != 1 {
		t.Errorf("the killed run left the networks %q, want one", mine)
	}
	if left := traces(prefix); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
