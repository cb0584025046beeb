package hosts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"seeder/test/harness"
)

const (
	// smallDiskBytes are what a small disk has for seeder, its cache of frames included:
	// what it has to leave free (images.min_free), and three builds.
	smallDiskBytes = 40 << 20
	fewFiles       = 24 // the same for files, besides the twentieth that it leaves free
)

// smallDisk leaves so little of data_dir's file system that the cache has to give way
// to new builds.
func smallDisk(_ *chaos, h *harness.Host) func() {
	fillBut(h, dataDir, max(0, smallDiskBytes-int64(treeBytes(h.Path(dataDir+"/cache")))))
	return func() { empty(h, dataDir) }
}

// fillBut takes all but some bytes of the file system of a directory.
func fillBut(h *harness.Host, dir string, freeBytes int64) {
	h.T.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(h.Path(dir), &st); err != nil {
		h.T.Fatal(err)
	}
	if take := int64(st.Bavail)*st.Bsize - freeBytes; take > 0 {
		h.Sh(fmt.Sprintf("fallocate -l %d %s/ballast 2>/dev/null || true", take, dir))
	}
}

// fewInodes leaves so few inodes that the cache has to give way.
func fewInodes(_ *chaos, h *harness.Host) func() {
	var st unix.Statfs_t
	if err := unix.Statfs(h.Path(dataDir), &st); err != nil {
		h.T.Fatal(err)
	}
	cached, _ := filepath.Glob(h.Path(dataDir + "/cache/*"))
	many := h.Path(dataDir + "/ballast.files")
	if err := os.Mkdir(many, 0o700); err != nil {
		h.T.Fatal(err)
	}
	for i := range max(0, int64(st.Ffree)-max(0, int64(st.Files)/20+int64(fewFiles-len(cached)))) {
		if err := os.WriteFile(filepath.Join(many, strconv.FormatInt(i, 10)), nil, 0o600); err != nil {
			break // somebody else has taken the last
		}
	}
	return func() {
		h.Sh("rm -rf " + dataDir + "/ballast.files")
		syncFS(h, dataDir) // else they are back after a power cut
	}
}

// blobsDir is where containerd keeps blobs.
const blobsDir = containerdRoot + "/io.containerd.content.v1.content/blobs/sha256"

// blobRots flips a bit of a layer that another host has, too. When the fault ends a host
// whose images are removed has to fetch it, from this one among others.
func blobRots(c *chaos, h *harness.Host) func() {
	files, _ := os.ReadDir(h.Path(blobsDir))
	var both []string
	for _, f := range files {
		for _, o := range c.others(h) {
			if there, err := os.Stat(o.Path(filepath.Join(blobsDir, f.Name()))); err == nil && there.Size() > 1<<16 && !c.isRotten(o, f.Name()) {
				both = append(both, f.Name())
				break
			}
		}
	}
	if len(both) == 0 {
		return func() {}
	}
	name := both[c.rng.IntN(len(both))]
	c.mu.Lock()
	c.rotten[h] = append(c.rotten[h], name)
	c.mu.Unlock()
	path := h.Path(filepath.Join(blobsDir, name))
	st, err := os.Stat(path)
	if err == nil {
		err = flipBit(path, c.rng.Int64N(st.Size()), c.rng.IntN(8))
	}
	if err != nil && !os.IsNotExist(err) { // it may have been collected
		c.t.Fatal(err)
	}
	return func() {
		others := slices.DeleteFunc(c.others(h), func(o *harness.Host) bool { return o == c.by || c.pruned.Load() == o })
		c.removeImages(others[c.rng.IntN(len(others))])
	}
}

// isRotten reports whether a fault has changed a blob of a host.
func (c *chaos) isRotten(h *harness.Host, blob string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.rotten[h], blob)
}

// rottenOn are the blobs of a host that faults have changed.
func (c *chaos) rottenOn(h *harness.Host) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.rotten[h])
}

// flipBit changes one bit of a file and keeps its time, as disks do that fail.
func flipBit(path string, at int64, bit int) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], at); err != nil {
		return err
	}
	return os.Chtimes(path, st.ModTime(), st.ModTime())
}

// removeImages is what people do who want everything pulled again.
func (c *chaos) removeImages(h *harness.Host) {
	out, err := h.CtrCmd("images", "ls", "-q").Output()
	if err != nil {
		return // containerd is away
	}
	for name := range strings.Lines(string(out)) {
		h.CtrCmd("images", "rm", "--sync", strings.TrimSpace(name)).Run() // it may be gone already
	}
}

// kubelets do what the kubelet does when more of containerd's disk is used than its
// imageGCHighThresholdPercent. Between rounds, since it spares what has just come.
func (c *chaos) kubelets() {
	for _, h := range c.hosts {
		var st unix.Statfs_t
		if unix.Statfs(h.Path(containerdRoot), &st) == nil && st.Bfree*100 < st.Blocks*40 {
			c.kubeletCollects(h)
		}
	}
}

func (c *chaos) kubeletCollects(h *harness.Host) { c.collected.Add(int64(kubeletCollects(h))) }

// kubeletCollects removes all images that are not pinned, as the kubelet does with those
// that no container uses when the disk is full, and says how many that were.
func kubeletCollects(h *harness.Host) (images int) {
	conn, err := h.CRI()
	if err != nil {
		return 0
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), convergeBound)
	defer cancel()
	cri := runtime.NewImageServiceClient(conn)
	list, err := cri.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return 0 // containerd is away
	}
	for _, img := range list.GetImages() {
		if img.GetPinned() {
			continue
		}
		if _, err := cri.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: img.GetId()}}); err == nil {
			images++
		}
	}
	return images
}

// upgrade gives a host, whose containerd does not run, the next version with the store
// that is there; one that has the newest goes back by one.
func (c *chaos) upgrade(h *harness.Host) {
	order := []string{"1.7", "2.2", "2.3", "2.2"}
	at := slices.IndexFunc(order, func(v string) bool { return strings.HasPrefix(h.Version, v+".") })
	h.Use(order[(at+1)%len(order)])
}
