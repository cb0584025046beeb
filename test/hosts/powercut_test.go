package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// TestPowerCut: a host whose power is cut as soon as an image is ready there has all of
// it afterwards, unpacked as it was, and fetches nothing again.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 1, "")
	a := n.Hosts[0]
	for _, version := range slices.Sorted(maps.Keys(harness.Containerds)) {
		h := n.AddHost(version)
		disks(h, 160, 640)
		h.StartContainerd()
		h.StartSeeder()
	}
	a.AwaitMembers(len(n.Hosts))
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 2 << 20, Random: 5 << 20, Seed: 1})
	a.Run("announce", harness.ShortName)
	for _, h := range n.Hosts[1:] {
		cutPower(h)
	}
	for _, h := range n.Hosts[1:] {
		powerOn(h)
		h.InState(h, report.Ready, "")
		cl := h.Client()
		img, err := cl.ImageService().Get(t.Context(), harness.FullName)
		if err == nil {
			err = unpacked(t.Context(), h, cl, img)
		}
		if err != nil {
			t.Errorf("with containerd %s: %v", h.Version, err)
			continue
		}
		h.Ready("hello")
		if got := h.Metric("seeder_wire_received_bytes_total"); got > 1<<20 {
			t.Errorf("with containerd %s %.0f bytes were fetched again", h.Version, got)
		}
	}
}

// Of ext4: EXT4_IOC_SHUTDOWN, and the flag by which the journal is not written first.
const (
	ioctlShutdown = 0x8004587d
	noLogFlush    = 2
)

// cutPower ends everything on a host at one instant. What its file systems had not
// written is gone: the kernel drops it.
func cutPower(h *harness.Host) {
	h.T.Helper()
	for _, d := range []*harness.Daemon{h.Containerd, h.Seeder} {
		d.Freeze()
	}
	for _, dir := range []string{containerdRoot, dataDir} {
		f, err := os.Open(h.Path(dir))
		if err == nil {
			err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, noLogFlush), f.Close())
		}
		if err != nil {
			h.T.Fatalf("cut the power of %s on %s: %v", dir, h.Name, err)
		}
	}
	for _, d := range []*harness.Daemon{h.Containerd, h.Seeder} {
		syscall.Kill(d.Cmd.Process.Pid, syscall.SIGCONT) // nsenter, which stops with it
		d.Stop(h.T, syscall.SIGKILL)
	}
}

// syncFS writes what was written to the file system of a directory to its disk.
func syncFS(h *harness.Host, dir string) {
	h.T.Helper()
	f, err := os.Open(h.Path(dir))
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		h.T.Fatal(err)
	}
}

// powerOn mounts what is on the disks and starts what ran.
func powerOn(h *harness.Host, env ...string) {
	h.T.Helper()
	// Whatever containerd had mounted is on its file system.
	h.Sh(`findmnt -rn -o TARGET | grep -e containerd-mount -e /run/k3s | busybox tac | xargs -r -n1 umount -l; rm -rf /run/k3s/containerd/* /run/seeder/*`)
	for _, dir := range []string{dataDir, containerdRoot} {
		harness.Eventually(h.T, 10*time.Second, "nobody uses "+dir, func() error {
			out, err := h.In(h.T.Context(), "umount", dir).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	mount(h, dataDir)
	mount(h, containerdRoot)
	h.StartContainerd()
	h.StartSeeder(env...)
}

// unpacked compares what containerd has unpacked of an image with its layers, but for
// those that a test has changed in the content store.
func unpacked(ctx context.Context, h *harness.Host, cl *client.Client, img images.Image, rotten ...string) error {
	cs := cl.ContentStore()
	manifest, err := images.Manifest(ctx, cs, img.Target, platforms.Default())
	if err != nil {
		return err
	}
	diffs, err := images.RootFS(ctx, cs, manifest.Config)
	if err != nil {
		return err
	}
	sn := cl.SnapshotService("overlayfs")
	key := "look-" + img.Target.Digest.Encoded()[:12]
	mounts, err := sn.View(ctx, key, identity.ChainID(diffs).String())
	if err != nil {
		return fmt.Errorf("its snapshot: %w", err)
	}
	defer sn.Remove(context.WithoutCancel(ctx), key) // what is left is a view of what is there
	var dirs []string                                // the topmost first
	for _, o := range mounts[0].Options {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
			dirs = strings.Split(lower, ":")
		}
	}
	if len(dirs) != len(manifest.Layers) {
		return fmt.Errorf("it has %d layers, and its snapshot is %v", len(manifest.Layers), mounts)
	}
	for i, l := range manifest.Layers {
		if slices.Contains(rotten, l.Digest.Encoded()) {
			continue // nothing to compare with
		}
		ra, err := cs.ReaderAt(ctx, l)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		if err != nil {
			return err
		}
		err = sameTree(io.NewSectionReader(ra, 0, ra.Size()), h.Path(dirs[len(dirs)-1-i]))
		if err = errors.Join(err, ra.Close()); err != nil {
			return fmt.Errorf("layer %s in %s: %w", l.Digest, dirs[len(dirs)-1-i], err)
		}
	}
	return nil
}

// sameTree compares the files of a tar with those of a directory.
func sameTree(layer io.Reader, dir string) error {
	for r := tar.NewReader(layer); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		want, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dir, hdr.Name))
		if err != nil {
			return fmt.Errorf("unpacked %s: %w", hdr.Name, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("unpacked %s has %d bytes that differ from the %d of the layer", hdr.Name, len(got), len(want))
		}
	}
}
