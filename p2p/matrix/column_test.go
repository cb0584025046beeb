package matrix

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

func TestReadSources(t *testing.T) {
	t.Parallel()
	var many []report.Source
	for range 1000 {
		many = append(many, report.Source{Name: "n\x1b[2J" + strings.Repeat("x", 2*report.MaxTextBytes), Bytes: 1})
	}
	got := readSources(many)
	if len(got) != maxSources {
		t.Errorf("%d sources", len(got))
	}
	if strings.Contains(got[0].Name, "\x1b") || len(got[0].Name) > report.MaxTextBytes+len("…") {
		t.Errorf("name %q", got[0].Name)
	}
	if got := readSources([]report.Source{{Name: "a", Bytes: -1}, {Name: "b", Bytes: 0}, {Name: "c", Bytes: 1}}); !slices.Equal(got, []report.Source{{Name: "c", Bytes: 1}}) {
		t.Errorf("%v", got)
	}
}

// A node remembers the origin of so many ready images, of the latest ones.
func TestOriginsAreBounded(t *testing.T) {
	t.Parallel()
	c := NewColumn(nil)
	for i := range maxOrigins + 3 {
		a := catalog.Announcement{Reference: fmt.Sprintf("r%d", i), Version: 1}
		c.begin(a, 0)
		c.update(a, func(x *cell) { x.total = 1 })
		c.Tally(a).Received("a", 1, 1)
		c.setState(a, report.Ready, "")
		c.setState(a, report.Ready, "") // looked at again
	}
	for i := range maxOrigins + 3 {
		x, _ := c.get(fmt.Sprintf("r%d", i))
		if kept := len(x.origin.Sources) > 0; kept != (i >= 3) || x.origin.Rate != 0 {
			t.Errorf("origin of r%d: %+v", i, x.origin)
		}
	}
}

// TestLateWord: the job of an announcement that was superseded may still find its image
// ready, or removed; nothing of that is said of the announcement that stands now.
func TestLateWord(t *testing.T) {
	t.Parallel()
	c := NewColumn(func(digest.Digest) int64 { return 0 })
	old := catalog.Announcement{Reference: "r", Version: 1, Target: ocispec.Descriptor{Digest: "sha256:a"}}
	rival, now := old, old
	rival.Version, now.Version = 2, 2
	rival.Target.Digest, now.Target.Digest = "sha256:b", "sha256:c" // of one version, from both sides of a partition
	c.Begin(old)
	c.Begin(rival)
	c.Begin(now)
	for _, a := range []catalog.Announcement{old, rival} {
		c.Settle(a, report.Ready, "", 0)
		c.Queue(a, "again")
		c.Remove(a)
		if x, ok := c.get("r"); !ok || x.version != 2 || x.target != "sha256:c" || x.state != report.Waiting || x.reason != "queued" {
			t.Fatalf("after the late word of version %d: %+v, %v", a.Version, x, ok)
		}
	}
	c.Settle(now, report.Ready, "", 0)
	if x, _ := c.get("r"); x.state != report.Ready {
		t.Errorf("%+v, want ready", x)
	}
}
