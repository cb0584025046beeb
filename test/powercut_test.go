package test

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
)

// TestPowerCut: a host whose power is cut as soon as an image is ready there has all of
// it afterwards, unpacked as it was, and fetches nothing again.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 1, "")
	a := n.hosts[0]
	for _, version := range slices.Sorted(maps.Keys(containerds)) {
		h := n.addHost(version)
		h.disks(160, 640)
		h.startContainerd()
		h.startSeeder()
	}
	a.awaitMembers(len(n.hosts))
	a.importImage(imageSpec{ref: short, says: "hello", payload: 2 << 20, random: 5 << 20, seed: 1})
	a.run("announce", short)
	for _, h := range n.hosts[1:] {
		h.cutPower()
	}
	for _, h := range n.hosts[1:] {
		h.powerOn()
		h.inState(h, report.Ready, "")
		cl := h.client()
		img, err := cl.ImageService().Get(t.Context(), full)
		if err == nil {
			err = unpacked(t.Context(), h, cl, img)
		}
		if err != nil {
			t.Errorf("with containerd %s: %v", h.version, err)
			continue
		}
		h.ready("hello")
		if got := h.metric("seeder_wire_received_bytes_total"); got > 1<<20 {
			t.Errorf("with containerd %s %.0f bytes were fetched again", h.version, got)
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
func (h *host) cutPower() {
	h.t.Helper()
	for _, d := range []*daemon{h.containerd, h.seeder} {
		d.freeze()
	}
	for _, dir := range []string{containerdRoot, dataDir} {
		f, err := os.Open(h.path(dir))
		if err == nil {
			err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, noLogFlush), f.Close())
		}
		if err != nil {
			h.t.Fatalf("cut the power of %s on %s: %v", dir, h.name, err)
		}
	}
	for _, d := range []*daemon{h.containerd, h.seeder} {
		syscall.Kill(d.cmd.Process.Pid, syscall.SIGCONT) // nsenter, which stops with it
		d.stop(h.t, syscall.SIGKILL)
	}
}

// sync writes what was written to the file system of a directory to its disk.
func (h *host) sync(dir string) {
	h.t.Helper()
	f, err := os.Open(h.path(dir))
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// powerOn mounts what is on the disks and starts what ran.
func (h *host) powerOn(env ...string) {
	h.t.Helper()
	// Whatever containerd had mounted is on its file system.
	h.sh(`findmnt -rn -o TARGET | grep -e containerd-mount -e /run/k3s | busybox tac | xargs -r -n1 umount -l; rm -rf /run/k3s/containerd/* /run/seeder/*`)
	for _, dir := range []string{dataDir, containerdRoot} {
		eventually(h.t, 10*time.Second, "nobody uses "+dir, func() error {
			out, err := h.in(h.t.Context(), "umount", dir).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	h.mount(dataDir)
	h.mount(containerdRoot)
	h.startContainerd()
	h.startSeeder(env...)
}

// unpacked compares what containerd has unpacked of an image with its layers.
func unpacked(ctx context.Context, h *host, cl *client.Client, img images.Image) error {
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
		ra, err := cs.ReaderAt(ctx, l)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		if err != nil {
			return err
		}
		err = sameTree(io.NewSectionReader(ra, 0, ra.Size()), h.path(dirs[len(dirs)-1-i]))
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
