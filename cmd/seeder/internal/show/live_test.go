package show

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/term/termtest"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
)

// liveFrames shows images on a terminal through their steps and returns it.
func liveFrames(t *testing.T, width, height int, steps ...report.Images) *termtest.Screen {
	t.Helper()
	screen := termtest.New(width, height)
	v := newLiveView(screen, func() term.Terminal { return term.Terminal{Live: true, Width: width, Height: height} })
	v.board = term.NewBoard(screen, v.term) // drawn by this test alone
	for _, images := range steps {
		for i := range images.Images {
			img := &images.Images[i]
			v.record(control.Event{Event: control.EventProgress, Ref: img.Reference, Image: img})
			if control.Converged(*img) {
				sum := control.Savings(*img)
				v.record(control.Event{Event: control.EventReady, Ref: img.Reference, Image: img, Saved: &sum, Time: time.Now()})
				v.took[img.Reference] = 6100 * time.Millisecond
			}
		}
		v.board.Show(v.boardRows())
	}
	v.close()
	screen.Check(t)
	for frame := range strings.SplitSeq(screen.Sent(), "\x1b[J") {
		seen := map[string]bool{}
		for line := range strings.Lines(frame) {
			name := line[:min(len(line), len("  h001  "))]
			if strings.HasPrefix(name, "  h") && seen[name] && len(steps[0].Images) == 1 {
				t.Errorf("%q is twice in one frame:\n%s", name, frame)
			}
			seen[name] = true
		}
	}
	return screen
}

// TestLiveAtEverySize: what announce shows of clusters of 3, 40 and 300 nodes, on a
// narrow and a wide terminal, while images are on their way.
func TestLiveAtEverySize(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 40, 300} {
		for _, size := range [][2]int{{40, 10}, {60, 15}, {100, 24}, {160, 50}} {
			t.Run(fmt.Sprintf("%d nodes, %d columns", nodes, size[0]), func(t *testing.T) {
				t.Parallel()
				images := busyCluster(nodes)
				screen := liveFrames(t, size[0], size[1], images, images)
				text := screen.Text()
				golden(t, fmt.Sprintf("live-%d-%d", nodes, size[0]), text)
				if lines := strings.Count(text, "\n"); lines > size[1] {
					t.Errorf("%d lines on %d", lines, size[1])
				}
				if strings.Count(text, "app:v1") != 1 {
					t.Errorf("a frame is left behind:\n%s", text)
				}
			})
		}
	}
}

// TestLiveToTheEnd: bars become text when a node is done, rows give way to others, and
// nothing of it is left behind.
func TestLiveToTheEnd(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{10, 40} {
		begin, mid, end := busyCluster(nodes), busyCluster(nodes), busyCluster(nodes)
		for _, step := range []*report.Images{&begin, &mid, &end} {
			step.Images = step.Images[:1]
		}
		for i := range nodes {
			b, m, e := &begin.Images[0].Nodes[i], &mid.Images[0].Nodes[i], &end.Images[0].Nodes[i]
			b.State, b.Reason, b.DoneBytes = report.Waiting, "queued", 0
			m.State, m.DoneBytes, m.RateBytesPerSecond = report.Fetching, m.TotalBytes/2, 1<<20
			if i%2 == 0 {
				m.State, m.Reason = report.Importing, "all data received, unpacking layer 3 of 4"
			}
			e.State, e.DoneBytes = report.Ready, e.TotalBytes
		}
		end.Images[0].Ready = nodes
		screen := liveFrames(t, 100, 20, begin, mid, begin, mid, end)
		golden(t, fmt.Sprintf("live-end-%d", nodes), screen.Text())
	}
}

// TestStatusOfManyTransfers: a status lists what it has room for, and says how much more
// there is.
func TestStatusOfManyTransfers(t *testing.T) {
	t.Parallel()
	status := (&controltest.Node{}).Status(t.Context())
	s := control.Judged{Status: status, Verdict: verdict.Decide(verdict.Input{Status: status})}
	for i := range 300 {
		tr := s.Transfers[0]
		tr.Reference = fmt.Sprintf("docker.io/library/app%03d:v1", i)
		if i%3 == 0 {
			tr.State, tr.RateBytesPerSecond = report.Importing, 0
		}
		s.Transfers = append(s.Transfers, tr)
	}
	golden(t, "status-many", strings.Join(StatusLines(term.Terminal{Width: 100}, s), "\n")+"\n")
	screen := termtest.New(100, 20)
	b := term.NewBoard(screen, func() term.Terminal { return term.Terminal{Live: true, Width: 100, Height: 20} })
	b.Show(statusRows(term.Terminal{Width: 100, Height: 20}, s))
	b.Show(statusRows(term.Terminal{Width: 100, Height: 20}, s))
	b.Close()
	screen.Check(t)
	golden(t, "status-live", screen.Text())
	if lines := strings.Count(screen.Text(), "\n"); lines > 20 {
		t.Errorf("%d lines on 20", lines)
	}
}

// TestLiveFollowsTheTerminal: after each change of the size nothing is left on the screen
// of what it showed before. What a terminal has scrolled away nobody can take back.
func TestLiveFollowsTheTerminal(t *testing.T) {
	t.Parallel()
	img := busyCluster(10).Images[0]
	screen := termtest.New(120, 20)
	v := newLiveView(screen, func() term.Terminal { return term.Terminal{Live: true, Width: screen.Width, Height: screen.Height} })
	v.board = term.NewBoard(screen, v.term)
	v.record(control.Event{Event: control.EventProgress, Ref: img.Reference, Image: &img})
	for _, size := range [][2]int{{120, 20}, {45, 20}, {45, 8}, {100, 8}, {100, 30}, {30, 30}} {
		screen.Resize(size[0], size[1])
		v.board.Show(v.boardRows())
		visible := screen.Visible()
		if strings.Count(visible, "app:v1") != 1 || strings.Count(visible, "ready on 7 of 10 nodes") > 1 || strings.Count(visible, "  h002  ") != 1 {
			t.Errorf("%d columns, %d lines:\n%s", size[0], size[1], visible)
		}
	}
	v.close()
	screen.Check(t)
}
