package main

import (
	"context"
	"encoding/json"
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
	"seeder/p2p/report"
)

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
	mid := controltest.Row(2, report.Ready, report.Fetching, report.Waiting)
	for i := range mid.Images[0].Nodes {
		mid.Images[0].Nodes[i].RateBytesPerSecond = 1 << 20
	}
	end := controltest.Row(2, report.Ready, report.Ready, report.Ready)
	nodes := end.Images[0].Nodes
	nodes[0].SentBytes = 5 << 20
	nodes[1].Sources, nodes[1].WireBytes = []report.Source{{Name: "n1", Bytes: 3 << 20}, {Name: "n3", Bytes: 1 << 20}}, 1<<20
	nodes[2].Sources, nodes[2].WireBytes = []report.Source{{Name: "n1", Bytes: 2 << 20}, {Name: "n2", Bytes: 1 << 20}, {Name: report.LocalSource, Bytes: 1 << 20}}, 1<<20
	return &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 2, Bytes: 4 << 20}, Steps: []report.Images{mid, mid, mid, end}}
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
			"2 nodes got 7 MiB in all, 3 MiB to 4 MiB each", "this host sent 1.2 × the image before compression, the other nodes gave each other the rest (28 %)")
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
	f := &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 2}, Steps: []report.Images{controltest.Row(2, report.Ready, report.Fetching)}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	socket := controltest.Serve(t, f)
	time.AfterFunc(500*time.Millisecond, cancel)
	code, screen, errs := onTerminal(t, ctx, map[string]string{"TERM": "xterm"}, socket, "announce", "app:v1")
	if code != cli.ExitNotConverged || !strings.Contains(errs, "seeding continues") {
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
	clitest.WantAll(t, screen.Text(), "node        n1", "containerd  waiting: no such socket", "app:v1  fetching 25%  ██████░", "1 MiB/s  3s left")
	if strings.Count(screen.Text(), "node        n1") != 1 {
		t.Errorf("frames are left behind:\n%s", screen.Text())
	}
}
