package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	dataDir        = "/var/lib/seeder"
	containerdRoot = "/var/lib/rancher/k3s/agent/containerd"
)

// disks gives a host file systems of its own that may be filled and broken, and whose
// power can be cut: ext4, one for seeder's data_dir and one for containerd.
func (h *host) disks(dataMiB, containerdMiB int) {
	h.t.Helper()
	for file, mib := range map[string]int{h.disk(dataDir): dataMiB, h.disk(containerdRoot): containerdMiB} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			h.t.Fatal(err)
		}
		if err := os.Truncate(file, int64(mib)<<20); err != nil {
			h.t.Fatal(err)
		}
		h.sh("mkfs.ext4 -q -F -m 0 -N 4096 " + file)
	}
	h.sh("mkdir -p " + dataDir + " " + containerdRoot)
	h.mount(dataDir)
	h.mount(containerdRoot)
}

// disk is the file below a file system of disks.
func (h *host) disk(dir string) string {
	return filepath.Join(h.net.dir, h.name+"-"+filepath.Base(dir)+".ext4")
}

// mount mounts a file system of disks. The loop device goes with the mount.
func (h *host) mount(dir string) {
	h.t.Helper()
	h.sh("mount -o loop,errors=remount-ro " + h.disk(dir) + " " + dir)
}

// sh runs a script on the host.
func (h *host) sh(script string) string {
	h.t.Helper()
	return run(h.t, h.in(h.t.Context(), "sh", "-c", script))
}

// freeze stops a daemon of the host as it is, thaw lets it go on. Its parent,
// nsenter, stops itself with it.
func (d *daemon) freeze() { syscall.Kill(d.pid, syscall.SIGSTOP) }

func (d *daemon) thaw() {
	syscall.Kill(d.cmd.Process.Pid, syscall.SIGCONT)
	syscall.Kill(d.pid, syscall.SIGCONT)
}

// fill leaves no byte free on the file system of a directory; empty ends that.
func (h *host) fill(dir string) {
	h.t.Helper()
	h.fillBut(dir, 1<<20)
	h.sh("cd " + dir + "; busybox dd if=/dev/zero of=ballast.2 bs=1k 2>/dev/null; true") // the last blocks
}

func (h *host) empty(dir string) {
	h.t.Helper()
	h.sh("cd " + dir + "; rm -f ballast ballast.2")
}

// breakData makes the file system of data_dir read-only under the daemon, as the
// kernel does when the disk fails. fixData checks and mounts it again, with the
// daemon not running.
func (h *host) breakData() {
	h.t.Helper()
	h.sh("echo 1 > /sys/fs/ext4/$(busybox basename $(findmnt -no SOURCE " + dataDir + "))/trigger_fs_error; ! touch " + dataDir + "/x 2>/dev/null")
}

func (h *host) fixData() {
	h.t.Helper()
	h.sh("umount " + dataDir)
	// 1: errors were corrected.
	h.sh("e2fsck -fy " + h.disk(dataDir) + " >/dev/null 2>&1 || test $? = 1")
	h.mount(dataDir)
}

// collect makes containerd collect garbage now.
func (h *host) collect() {
	h.ctrCmd("leases", "create", "--id", "collect").Run()
	h.ctrCmd("leases", "delete", "--sync", "collect").Run()
}

// drop drops what comes from other hosts, a share of its packets in percent;
// from nobody in particular it drops that share of everything.
func (h *host) drop(percent int, from ...*host) {
	h.t.Helper()
	which := ""
	if len(from) > 0 {
		var addresses []string
		for _, f := range from {
			addresses = append(addresses, f.address)
		}
		which = "ip saddr { " + strings.Join(addresses, ", ") + " } "
	}
	if percent < 100 {
		which += fmt.Sprintf("numgen random mod 100 < %d ", percent)
	}
	rules := fmt.Sprintf("table inet loss {\n  chain in {\n    type filter hook input priority 0;\n    iifname \"eth0\" %sdrop\n  }\n}\n", which)
	h.write("/etc/loss.nft", rules, 0o644)
	h.sh("nft -f /etc/loss.nft")
}

// dropNothing ends what drop began.
func (h *host) dropNothing() {
	h.t.Helper()
	h.sh("nft delete table inet loss")
}

// limitFiles sets how many files a daemon may have open, and returns what it was.
func (h *host) limitFiles(d *daemon, files string) (before string) {
	h.t.Helper()
	pid := strconv.Itoa(d.pid)
	before = strings.TrimSpace(run(h.t, h.outside("prlimit", "--pid", pid, "--nofile", "--noheadings", "--output", "SOFT")))
	run(h.t, h.outside("prlimit", "--pid", pid, "--nofile="+files+":"))
	return before
}

// outside is a command that sees the pids of the machine.
func (h *host) outside(args ...string) *exec.Cmd {
	return exec.CommandContext(h.t.Context(), args[0], args[1:]...)
}

// openFiles counts what a daemon has open, by what it is.
func openFiles(d *daemon) map[string]int {
	dir := fmt.Sprintf("/proc/%d/fd", d.pid)
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

// garble writes noise into a file in some places, as a disk does that forgets.
func garble(rng *rand.Rand, path string, places int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	for range places {
		var noise [16]byte
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		if _, err := f.WriteAt(noise[:min(int64(len(noise)), size)], rng.Int64N(max(1, size-int64(len(noise))))); err != nil {
			return err
		}
	}
	return f.Sync()
}

// slowLink puts a delay on a host's link in both directions, without a limit on
// what may be on its way. It takes the place of the cable between the switch and
// the host until the returned function is called.
func (h *host) slowLink(delay time.Duration) (end func()) {
	h.t.Helper()
	sw := h.net.switched
	in, out := h.port+"a", h.port+"b"
	run(h.t, sw.in(h.t.Context(), "sh", "-ec", strings.Join([]string{
		"ip link add " + in + " type veth peer name " + out,
		"ip link set " + h.port + " nomaster promisc on",
		"ip link set " + in + " up promisc on",
		"ip link set " + out + " master br0 up",
	}, "\n")))
	ctx, cancel := context.WithCancel(context.Background())
	cable, err := sw.connect(ctx, h.port, in, delay)
	if err != nil {
		h.t.Fatalf("delay the link of %s: %v", h.name, err)
	}
	return func() {
		cancel()
		cable()
		run(h.t, sw.in(h.t.Context(), "sh", "-ec", strings.Join([]string{
			"ip link del " + in,
			"ip link set " + h.port + " promisc off master br0",
		}, "\n")))
	}
}

// panicked is the first lines of what a Go program prints when it dies.
func panicked(log []byte) string {
	for _, mark := range []string{"panic:", "fatal error:", "WARNING: DATA RACE", "unexpected fault address"} {
		if i := bytes.Index(log, []byte(mark)); i >= 0 {
			return string(log[i:min(len(log), i+2000)])
		}
	}
	return ""
}
