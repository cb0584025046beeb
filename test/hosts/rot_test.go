package hosts

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

// rot changes one byte in the middle of the largest file of a directory, and keeps the
// file's time: so do disks that fail.
func rot(h *harness.Host, dir string) (file string) {
	h.T.Helper()
	return strings.TrimSpace(h.Sh(`cd ` + dir + ` && f=$(ls -S | head -n 1) && s=$(($(stat -c %s "$f") / 2)) && touch -r "$f" /tmp/stamp &&
b=$(dd if="$f" bs=1 skip=$s count=1 2>/dev/null | od -An -tu1) && printf "\\$(printf %o $(((b + 1) % 256)))" | dd of="$f" bs=1 seek=$s conv=notrunc 2>/dev/null &&
touch -r /tmp/stamp "$f" && echo "$f"`))
}

// TestOneRottenByte: one byte that rots on the only holder's disk holds nobody up, in a
// cached frame nor in containerd's blob: it is found, said, not served, and healed from
// containerd or from another host.
func TestOneRottenByte(t *testing.T) {
	t.Parallel()
	harness.WantCache(t)
	// Without a limit a link may outrun the encoder: then chunks travel raw, and no frame is kept.
	n := harness.NewCluster(t, harness.Newest, 2, "200mbit")
	a, b := n.Hosts[0], n.Hosts[1]
	blobs := containerdRoot + "/io.containerd.content.v1.content/blobs/sha256"

	// A frame of the only holder.
	b.Seeder.Stop(t, 15)
	a.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: "one", Payload: 8 << 20, Random: 16 << 20, Seed: 1})
	a.Run("announce", "--detach", harness.ShortName)
	c := n.AddHost(harness.Newest)
	c.StartContainerd()
	c.StartSeeder()
	c.Ready("one")
	c.Seeder.Stop(t, 15)
	rot(a, dataDir+"/cache")
	b.StartSeeder()
	b.Ready("one")
	if got := b.Metric("seeder_chunk_verification_failures_total"); got != 0 {
		t.Errorf("%v damaged chunks were sent", got)
	}
	if log := a.Seeder.Log.Tail(1000); !strings.Contains(log, "found a damaged frame on disk; not sending it") {
		t.Error("the holder says nothing of the damaged frame")
	}

	// The blob in containerd, which the announcer has verified and sent before. c asks
	// both, and one of them has the rotten chunk.
	b.Seeder.Stop(t, 15)
	blob := rot(a, blobs)
	c.Sh("rm -rf " + dataDir + "/*")
	c.Ctr(append([]string{"images", "rm", "--sync"}, names(c)...)...)
	c.StartSeeder()
	harness.Eventually(t, 60*time.Second, "the announcer has found the rotten blob", func() error {
		if log := a.Seeder.Log.Tail(1000); !strings.Contains(log, "found a damaged blob in containerd's content store") {
			return fmt.Errorf("its log does not say so")
		}
		return nil
	})
	a.InState(a, "fetching", "")
	b.StartSeeder() // has all of it
	c.Ready("one")
	a.Ready("one")
	if sum := a.Sh("sha256sum " + blobs + "/" + blob); !strings.HasPrefix(sum, blob) {
		t.Errorf("the announcer's blob %s is still %s", blob, sum)
	}
	for _, h := range n.Hosts {
		wantLeases(h)
	}
}

// rotBlob is rot of one blob of containerd.
func rotBlob(h *harness.Host, d digest.Digest) {
	h.T.Helper()
	h.Sh(fmt.Sprintf(`cd %s && f=%s && s=$(($(stat -c %%s $f) / 2)) && touch -r $f /tmp/stamp &&
b=$(dd if=$f bs=1 skip=$s count=1 2>/dev/null | od -An -tu1) && printf "\\$(printf %%o $(((b + 1) %% 256)))" | dd of=$f bs=1 seek=$s conv=notrunc 2>/dev/null &&
touch -r /tmp/stamp $f`, blobsDir, d.Encoded()))
}

// whole is an error while a blob's file is not what its name says.
func wholeBlob(h *harness.Host, d digest.Digest) error {
	if sum := h.Sh("sha256sum " + blobsDir + "/" + d.Encoded() + " 2>&1 || :"); !strings.HasPrefix(sum, d.Encoded()) {
		return fmt.Errorf("the blob %s on %s is %s", d, h.Name, sum)
	}
	return nil
}

// TestRottenDocuments: a manifest, config or index that rots in containerd is found,
// counts as missing, and is written anew with what another host has; containers run from
// the image again. Where no other host has it, the archive brings it back.
func TestRottenDocuments(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.FullName, Says: "whole", Payload: 100_000})
	file := img.OCIArchive(t, n.Dir)
	a.Run("announce", "--from", file)
	b.Ready("whole")
	manifest, config := digest.FromBytes(img.Manifest), digest.FromBytes(img.Config)
	for _, d := range []digest.Digest{manifest, config} {
		rotBlob(b, d)
		if wholeBlob(b, d) == nil {
			t.Fatal("it did not rot")
		}
		b.Seeder.Stop(t, 15) // it looks at everything as it starts
		b.StartSeeder()
		harness.Eventually(t, 60*time.Second, "the blob is whole", func() error { return wholeBlob(b, d) })
		b.Ready("whole")
	}
	b.Seeder.Stop(t, 15)
	for _, d := range []digest.Digest{manifest, config} {
		rotBlob(a, d)
		a.Run("announce", "--detach", "--from", file)
		if err := wholeBlob(a, d); err != nil {
			t.Error(err)
		}
		a.Ready("whole")
	}
	wantLeases(a)
}
