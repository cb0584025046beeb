package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"seeder/test/harness"
)

// slowBytesPerSec is what a good SD card writes.
const slowBytesPerSec = 20 << 20

// slowDisk puts seeder's data_dir and containerd's on a disk of so many MiB that reads and
// writes so many bytes a second: a file system of the host's own on a loop device, which
// the kernel throttles. The file is not in the page cache as well.
func slowDisk(h *harness.Host, group *harness.MemoryGroup, mib, bytesPerSec int64) {
	t := h.T
	t.Helper()
	file := disk(h, "slow")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, mib<<20); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(harness.Run(t, exec.Command(args[0], args[1:]...)))
	}
	run("mkfs.ext4", "-q", "-F", "-m", "0", file)
	device := run("losetup", "--find", "--show", "--direct-io=on", file)
	h.Sh("mkdir /run/slow; mount " + device + " /run/slow")
	run("losetup", "-d", device) // from here on it goes with the mount
	for i, dir := range []string{dataDir, containerdRoot} {
		h.Sh(fmt.Sprintf("mkdir -p %[1]s /run/slow/%[2]d; mount --bind /run/slow/%[2]d %[1]s", dir, i))
	}
	group.BoundDisk(device, bytesPerSec)
}
