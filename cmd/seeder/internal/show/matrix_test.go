package show

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".txt")
	if *updateGolden {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-update writes it anew):\n%s", file, diff)
	}
}

// busyCluster is two images on so many nodes: one on its way, with every trouble
// there is, the other one ready but on one node.
func busyCluster(nodes int) report.Images {
	const mib = 1 << 20
	app := report.ImageState{Reference: "docker.io/library/app:v1", Digest: "sha256:" + strings.Repeat("ab", 32), Version: 7,
		Size: 312 * mib, State: "announced", AnnouncedBy: "h001", AnnouncedAt: time.Time{}, Nodes: []report.NodeState{}}
	dash := report.ImageState{Reference: "docker.io/library/k3s-dashboard:latest", Digest: "sha256:" + strings.Repeat("cd", 32), Version: 1,
		Size: 40 * mib, State: "announced", AnnouncedBy: "h001", Nodes: []report.NodeState{}}
	for i := range nodes {
		name := fmt.Sprintf("h%03d", i+1)
		n := report.NodeState{Name: name, TotalBytes: 312 * mib, State: report.Ready, DoneBytes: 312 * mib,
			Sources: []report.Source{{Name: "h001", Bytes: 200 * mib}, {Name: fmt.Sprintf("h%03d", (i+7)%nodes+1), Bytes: 80 * mib}, {Name: report.LocalSource, Bytes: 32 * mib}}}
		switch i % 10 {
		case 0:
			n.Sources = nil
		case 1:
			n.State, n.DoneBytes = report.Fetching, int64(20+i)*mib
			n.Reason, n.RateBytesPerSecond = "on its way", 12*mib
		case 2:
			n.State, n.DoneBytes, n.Reason, n.Sources = report.Waiting, 0, "containerd at /run/k3s/containerd/containerd.sock does not answer", nil
		case 3:
			n.State, n.DoneBytes, n.Sources = report.Unreachable, 0, nil
			n.Reason = fmt.Sprintf("does not answer on 10.0.%d.%d:7951: i/o timeout", i/250, i%250)
		case 4:
			if i > 100 {
				n.State, n.DoneBytes, n.Reason = report.Failed, 100*mib, "no room on \x1b[2Jthe disk"
			}
		}
		if n.State == report.Ready {
			app.Ready++
		}
		app.Total++
		app.Nodes = append(app.Nodes, n)
		d := report.NodeState{Name: name, TotalBytes: 40 * mib, DoneBytes: 40 * mib, State: report.Ready}
		if i == nodes-1 {
			d.State, d.Reason = report.Importing, "all data received, unpacking layer 3 of 4"
		} else {
			dash.Ready++
		}
		dash.Total++
		dash.Nodes = append(dash.Nodes, d)
	}
	return report.Images{Images: []report.ImageState{app, dash}}
}

// TestImagesOfEverySize: what `images` and `images REF` print of clusters of 3, 40
// and 300 nodes, in a pipe and on terminals.
func TestImagesOfEverySize(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 40, 300} {
		for _, width := range []int{0, 60, 160} {
			t.Run(fmt.Sprintf("%d nodes, %d columns", nodes, width), func(t *testing.T) {
				t.Parallel()
				var out strings.Builder
				images, terminal := busyCluster(nodes), term.Terminal{Width: width}
				if err := PrintMatrix(&out, terminal, images); err != nil {
					t.Fatal(err)
				}
				if err := PrintImage(&out, terminal, images.Images[0]); err != nil {
					t.Fatal(err)
				}
				golden(t, fmt.Sprintf("images-%d-%d", nodes, width), out.String())
				if strings.Contains(out.String(), "\x1b") {
					t.Error("a node writes on the terminal")
				}
				for line := range strings.Lines(out.String()) {
					if n := len([]rune(strings.TrimSuffix(line, "\n"))); width > 0 && n > width && !strings.Contains(line, "sha256:") {
						t.Errorf("%d columns on %d: %s", n, width, line)
					}
				}
			})
		}
	}
}

// Many references on few nodes are one line each, and what is behind stands below.
func TestManyImagesOnFewNodes(t *testing.T) {
	t.Parallel()
	var all report.Images
	for i := range 120 {
		img := busyCluster(3).Images[1]
		img.Reference = fmt.Sprintf("docker.io/library/app%03d:v1", i)
		all.Images = append(all.Images, img)
	}
	var out strings.Builder
	if err := PrintMatrix(&out, term.Terminal{Width: 100}, all); err != nil {
		t.Fatal(err)
	}
	golden(t, "images-many", out.String())
}
