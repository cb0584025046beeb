package hosts

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"seeder/test/harness"
)

const (
	dataDir        = "/var/lib/seeder"
	containerdRoot = "/var/lib/rancher/k3s/agent/containerd"
)

// disks gives a host file systems of its own that may be filled and broken, and whose
// power can be cut: ext4, one for seeder's data_dir and one for containerd.
func disks(h *harness.Host, dataMiB, containerdMiB int) {
	h.T.Helper()
	for file, mib := range map[string]int{disk(h, dataDir): dataMiB, disk(h, containerdRoot): containerdMiB} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			h.T.Fatal(err)
		}
		if err := os.Truncate(file, int64(mib)<<20); err != nil {
			h.T.Fatal(err)
		}
		h.Sh("mkfs.ext4 -q -F -m 0 -N 4096 " + file)
	}
	h.Sh("mkdir -p " + dataDir + " " + containerdRoot)
	mount(h, dataDir)
	mount(h, containerdRoot)
}

// disk is the file below a file system of disks.
func disk(h *harness.Host, dir string) string {
	return filepath.Join(h.Net.Dir, h.Name+"-"+filepath.Base(dir)+".ext4")
}

// mount mounts a file system of disks. The loop device goes with the mount.
func mount(h *harness.Host, dir string) {
	h.T.Helper()
	h.Sh("mount -o loop,errors=remount-ro " + disk(h, dir) + " " + dir)
}

// fill leaves no byte free on the file system of a directory; empty ends that.
func fill(h *harness.Host, dir string) {
	h.T.Helper()
	fillBut(h, dir, 1<<20)
	h.Sh("cd " + dir + "; busybox dd if=/dev/zero of=ballast.2 bs=1k 2>/dev/null; true") // the last blocks
}

func empty(h *harness.Host, dir string) {
	h.T.Helper()
	h.Sh("cd " + dir + "; rm -f ballast ballast.2")
	syncFS(h, dir) // else it is back after a power cut
}

// breakData makes the file system of data_dir read-only under the daemon, as the
// kernel does when the disk fails. fixData checks and mounts it again, with the
// daemon not running.
func breakData(h *harness.Host) {
	h.T.Helper()
	h.Sh("echo 1 > /sys/fs/ext4/$(busybox basename $(findmnt -no SOURCE " + dataDir + "))/trigger_fs_error; ! touch " + dataDir + "/x 2>/dev/null")
}

func fixData(h *harness.Host) {
	h.T.Helper()
	h.Sh("umount " + dataDir)
	// 1: errors were corrected.
	h.Sh("e2fsck -fy " + disk(h, dataDir) + " >/dev/null 2>&1 || test $? = 1")
	mount(h, dataDir)
}

// collect makes containerd collect garbage now.
func collect(h *harness.Host) {
	h.CtrCmd("leases", "create", "--id", "collect").Run()
	h.CtrCmd("leases", "delete", "--sync", "collect").Run()
}

// drop drops what comes from other hosts, a share of its packets in percent;
// from nobody in particular it drops that share of everything.
func drop(h *harness.Host, percent int, from ...*harness.Host) {
	h.T.Helper()
	which := ""
	if len(from) > 0 {
		var addresses []string
		for _, f := range from {
			addresses = append(addresses, f.Address)
		}
		which = "ip saddr { " + strings.Join(addresses, ", ") + " } "
	}
	if percent < 100 {
		which += fmt.Sprintf("numgen random mod 100 < %d ", percent)
	}
	rules := fmt.Sprintf("table inet loss {\n  chain in {\n    type filter hook input priority 0;\n    iifname \"eth0\" %sdrop\n  }\n}\n", which)
	h.Write("/etc/loss.nft", rules, 0o644)
	h.Sh("nft -f /etc/loss.nft")
}

// dropNothing ends what drop began.
func dropNothing(h *harness.Host) {
	h.T.Helper()
	h.Sh("nft delete table inet loss")
}

// limitFiles sets how many files a daemon may have open, and returns what it was.
func limitFiles(h *harness.Host, d *harness.Daemon, files string) (before string) {
	h.T.Helper()
	pid := strconv.Itoa(d.PID)
	before = strings.TrimSpace(harness.Run(h.T, outside(h, "prlimit", "--pid", pid, "--nofile", "--noheadings", "--output", "SOFT")))
	harness.Run(h.T, outside(h, "prlimit", "--pid", pid, "--nofile="+files+":"))
	return before
}

// outside is a command that sees the pids of the machine.
func outside(h *harness.Host, args ...string) *exec.Cmd {
	return exec.CommandContext(h.T.Context(), args[0], args[1:]...)
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

// panicked is the first lines of what a Go program prints when it dies.
func panicked(log []byte) string {
	for _, mark := range []string{"panic:", "fatal error:", "WARNING: DATA RACE", "unexpected fault address"} {
		if i := bytes.Index(append([]byte("\n"), log...), []byte("\n"+mark)); i >= 0 { // in a line of the log it is a cause
			return string(log[i:min(len(log), i+2000)])
		}
	}
	return ""
}
