package test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// rot changes one byte in the middle of the largest file of a directory, and keeps the
// file's time: so do disks that fail.
func (h *host) rot(dir string) (file string) {
	h.t.Helper()
	return strings.TrimSpace(h.sh(`cd ` + dir + ` && f=$(ls -S | head -n 1) && s=$(($(stat -c %s "$f") / 2)) && touch -r "$f" /tmp/stamp &&
b=$(dd if="$f" bs=1 skip=$s count=1 2>/dev/null | od -An -tu1) && printf "\\$(printf %o $(((b + 1) % 256)))" | dd of="$f" bs=1 seek=$s conv=notrunc 2>/dev/null &&
touch -r /tmp/stamp "$f" && echo "$f"`))
}

// TestOneRottenByte: one byte that rots on the only holder's disk holds nobody up, in a
// cached frame nor in containerd's blob: it is found, said, not served, and healed from
// containerd or from another host.
func TestOneRottenByte(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 2, "")
	a, b := n.hosts[0], n.hosts[1]
	blobs := containerdRoot + "/io.containerd.content.v1.content/blobs/sha256"

	// A frame of the only holder.
	b.seeder.stop(t, 15)
	a.importImage(imageSpec{ref: short, says: "one", payload: 8 << 20, random: 16 << 20, seed: 1})
	a.run("announce", "--detach", short)
	c := n.addHost(newest)
	c.startContainerd()
	c.startSeeder()
	c.ready("one")
	c.seeder.stop(t, 15)
	a.rot(dataDir + "/cache")
	b.startSeeder()
	b.ready("one")
	if got := b.metric("seeder_chunk_verification_failures_total"); got != 0 {
		t.Errorf("%v damaged chunks were sent", got)
	}
	if log := a.seeder.log.tail(1000); !strings.Contains(log, "found a damaged frame on disk; not sending it") {
		t.Error("the holder says nothing of the damaged frame")
	}

	// The blob in containerd, which the announcer has verified and sent before. c asks
	// both, and one of them has the rotten chunk.
	b.seeder.stop(t, 15)
	blob := a.rot(blobs)
	c.sh("rm -rf " + dataDir + "/*")
	c.ctr(append([]string{"images", "rm", "--sync"}, c.names()...)...)
	c.startSeeder()
	eventually(t, 60*time.Second, "the announcer has found the rotten blob", func() error {
		if log := a.seeder.log.tail(1000); !strings.Contains(log, "found a damaged blob in containerd's content store") {
			return fmt.Errorf("its log does not say so")
		}
		return nil
	})
	a.inState(a, "fetching", "")
	b.startSeeder() // has all of it
	c.ready("one")
	a.ready("one")
	if sum := a.sh("sha256sum " + blobs + "/" + blob); !strings.HasPrefix(sum, blob) {
		t.Errorf("the announcer's blob %s is still %s", blob, sum)
	}
	for _, h := range n.hosts {
		h.wantLeases()
	}
}
