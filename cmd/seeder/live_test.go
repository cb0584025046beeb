package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/term/termtest"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p"
)

// liveFrames shows images on a terminal through their steps and returns it.
func liveFrames(t *testing.T, width, height int, steps ...p2p.Images) *termtest.Screen {
	t.Helper()
	screen := termtest.New(width, height)
	v := newLiveView(screen, func() term.Terminal { return term.Terminal{Live: true, Width: width, Height: height} })
	v.board = term.NewBoard(screen, v.term) // drawn by this test alone
	for _, images := range steps {
		for i := range images.Images {
			img := &images.Images[i]
			v.note(control.Event{Event: control.EventProgress, Ref: img.Reference, Image: img})
			if control.Converged(*img) {
				sum := control.Savings(*img)
				v.note(control.Event{Event: control.EventReady, Ref: img.Reference, Image: img, Saved: &sum, Time: time.Now()})
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
				if strings.Count(text, "app:v1: ready on") != 1 {
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
		for _, step := range []*p2p.Images{&begin, &mid, &end} {
			step.Images = step.Images[:1]
		}
		for i := range nodes {
			b, m, e := &begin.Images[0].Nodes[i], &mid.Images[0].Nodes[i], &end.Images[0].Nodes[i]
			b.State, b.Reason, b.DoneBytes = p2p.Waiting, "queued", 0
			m.State, m.DoneBytes, m.RateBytesPerSecond = p2p.Fetching, m.TotalBytes/2, 1<<20
			if i%2 == 0 {
				m.State, m.Reason = p2p.Importing, "every chunk is here"
			}
			e.State, e.DoneBytes = p2p.Ready, e.TotalBytes
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
			tr.State, tr.RateBytesPerSecond = p2p.Importing, 0
		}
		s.Transfers = append(s.Transfers, tr)
	}
	golden(t, "status-many", strings.Join(statusLines(term.Terminal{Width: 100}, s), "\n")+"\n")
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
	v.note(control.Event{Event: control.EventProgress, Ref: img.Reference, Image: &img})
	for _, size := range [][2]int{{120, 20}, {45, 20}, {45, 8}, {100, 8}, {100, 30}, {30, 30}} {
		screen.Resize(size[0], size[1])
		v.board.Show(v.boardRows())
		visible := screen.Visible()
		if strings.Count(visible, "app:v1: ready") != 1 || strings.Count(visible, "  h002  ") != 1 {
			t.Errorf("%d columns, %d lines:\n%s", size[0], size[1], visible)
		}
	}
	v.close()
	screen.Check(t)
}

// onTerminal runs a command on a real terminal and returns what that shows.
func onTerminal(t *testing.T, ctx context.Context, env map[string]string, socket string, args ...string) (code int, screen *termtest.Screen, errs string) {
	t.Helper()
	screen = termtest.New(100, 20)
	stdout, _, shown := termtest.OpenPTY(t, screen)
	a := &cli.Env{Stdin: strings.NewReader(""), Stdout: stdout, Stderr: io.Discard, Environ: func() []string { return nil },
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	root := rootCommand(a)
	root.SetArgs(append(args, "--socket", socket))
	err := root.ExecuteContext(ctx)
	if err := stdout.Close(); err != nil {
		t.Error(err)
	}
	<-shown
	screen.Check(t)
	if err != nil {
		errs = err.Error()
	}
	return cli.ExitCode(err), screen, errs
}

// threeNodes is an announcement on its way to its end.
func threeNodes() *controltest.Node {
	mid := controltest.Row(2, p2p.Ready, p2p.Fetching, p2p.Waiting)
	for i := range mid.Images[0].Nodes {
		mid.Images[0].Nodes[i].RateBytesPerSecond = 1 << 20
	}
	end := controltest.Row(2, p2p.Ready, p2p.Ready, p2p.Ready)
	nodes := end.Images[0].Nodes
	nodes[0].SentBytes = 5 << 20
	nodes[1].Sources, nodes[1].WireBytes = []p2p.Source{{Name: "n1", Bytes: 3 << 20}, {Name: "n3", Bytes: 1 << 20}}, 1<<20
	nodes[2].Sources, nodes[2].WireBytes = []p2p.Source{{Name: "n1", Bytes: 2 << 20}, {Name: "n2", Bytes: 1 << 20}, {Name: p2p.LocalSource, Bytes: 1 << 20}}, 1<<20
	return &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 2, Bytes: 4 << 20}, Steps: []p2p.Images{mid, mid, mid, end}}
}

// TestTerminal runs announce on a real terminal.
func TestTerminal(t *testing.T) {
	t.Parallel()
	t.Run("colours", func(t *testing.T) {
		t.Parallel()
		code, screen, errs := onTerminal(t, t.Context(), map[string]string{"TERM": "xterm"}, controltest.Serve(t, threeNodes()), "announce", "app:v1")
		if code != cli.ExitDone {
			t.Fatalf("exit code %d: %s", code, errs)
		}
		clitest.WantAll(t, screen.Text(), "app:v1: announced as version 2", "app:v1: version 2 is ready on 3 of 3 nodes",
			"\n  n2  ready  4 MiB from n1, n3\n", "\n  n3  ready  4 MiB from n1, n2, local\n",
			"2 nodes got 7 MiB in all, 3 MiB to 4 MiB each", "this host sent 1.2 × the image, the other nodes gave each other the rest (28 %)")
		clitest.WantAll(t, screen.Sent(), term.Green, term.Yellow, "██████░", "1 MiB of 4 MiB", "1 MiB/s", "3s left")
		if n := strings.Count(screen.Text(), "n2"); n != 2 { // its row, and as a source
			t.Errorf("frames are left behind:\n%s", screen.Text())
		}
	})
	t.Run("NO_COLOR", func(t *testing.T) {
		t.Parallel()
		_, screen, _ := onTerminal(t, t.Context(), map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, controltest.Serve(t, threeNodes()), "announce", "app:v1")
		clitest.WantAll(t, screen.Sent(), "\x1b[", "██████░")
		for _, colour := range []string{term.Green, term.Yellow, term.Red, term.Faint} {
			if strings.Contains(screen.Sent(), colour) {
				t.Errorf("%q in %q", colour, screen.Sent())
			}
		}
	})
	t.Run("dumb", func(t *testing.T) {
		t.Parallel()
		_, screen, _ := onTerminal(t, t.Context(), map[string]string{"TERM": "dumb"}, controltest.Serve(t, threeNodes()), "announce", "app:v1")
		clitest.WantAll(t, screen.Text(), "app:v1 on n2: fetching 25%", "2 nodes got 7 MiB in all")
		if strings.Contains(screen.Sent(), "\x1b") {
			t.Errorf("%q", screen.Sent())
		}
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		_, screen, _ := onTerminal(t, t.Context(), map[string]string{"TERM": "xterm"}, controltest.Serve(t, threeNodes()), "announce", "app:v1", "-o", "json")
		for line := range strings.Lines(screen.Sent()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %q", line)
			}
		}
		clitest.WantAll(t, screen.Sent(), `"saved":{"announcer":"n1","nodes":2,"had":0,"image_bytes":4194304,"fetched_bytes":7340032`)
	})
}

// TestTerminalInterrupted: Ctrl-C leaves the last state and a clean line below it.
func TestTerminalInterrupted(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 2}, Steps: []p2p.Images{controltest.Row(2, p2p.Ready, p2p.Fetching)}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	socket := controltest.Serve(t, f)
	time.AfterFunc(500*time.Millisecond, cancel)
	code, screen, errs := onTerminal(t, ctx, map[string]string{"TERM": "xterm"}, socket, "announce", "app:v1")
	if code != cli.ExitNotConverged || !strings.Contains(errs, "the seeding goes on") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if strings.Count(screen.Text(), "app:v1: ready on") > 1 {
		t.Errorf("frames are left behind:\n%s", screen.Text())
	}
}

// TestTerminalWatch: status --watch draws bars, and ends cleanly.
func TestTerminalWatch(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	time.AfterFunc(1500*time.Millisecond, cancel)
	code, screen, errs := onTerminal(t, ctx, map[string]string{"TERM": "xterm"}, controltest.Serve(t, &controltest.Node{}), "status", "--watch")
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, screen.Text(), "node        n1", "containerd  waiting: no such?socket", "app:v1  fetching 25%  ██████░", "1 MiB/s  3s left")
	if strings.Count(screen.Text(), "node        n1") != 1 {
		t.Errorf("frames are left behind:\n%s", screen.Text())
	}
}
