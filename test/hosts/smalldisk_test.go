package hosts

import (
	"fmt"
	"testing"

	"seeder/test/harness"
)

// TestSmallDisk: the frames of finished images never keep the next one from a small
// disk, whether data_dir has one of its own or shares that of containerd, and whether
// bytes or inodes are scarce.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]string{
		"two file systems": "mount -t tmpfs -o size=32m tmpfs " + dataDir,
		"one file system":  "mount -t tmpfs -o size=400m tmpfs /var/lib; mkdir -p " + dataDir + " " + containerdRoot,
		"few inodes":       "mount -t tmpfs -o size=1g,nr_inodes=60 tmpfs " + dataDir,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := harness.NewCluster(t, harness.Newest, 1, "")
			a := n.Hosts[0]
			h := n.AddHost(harness.Newest)
			h.Sh("mkdir -p " + dataDir + "; " + mount)
			h.StartContainerd()
			h.StartSeeder("SEEDER_TRANSFER_CACHE=10GiB") // no bound but what the disk has
			a.AwaitMembers(2)
			for i := range 12 {
				ref := fmt.Sprintf("app%d:latest", i)
				a.ImportImage(harness.ImageSpec{Ref: ref, Says: "hello", Payload: 8 << 20, Seed: uint64(i)})
				a.Run("announce", "--timeout", "60s", ref)
			}
			t.Logf("%s: %s", name, h.Run("status"))
			t.Logf("%s", h.Sh("df -m "+dataDir+"; df -i "+dataDir+"; ls "+dataDir+"/cache | busybox wc -l"))
			if h.Metric("seeder_cache_bytes") > h.Metric("seeder_cache_limit_bytes") {
				t.Error("the cache is beyond its bound")
			}
		})
	}
}
