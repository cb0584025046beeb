package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/p2p/report"
)

// seeder runs a command against socket.
func seeder(ctx context.Context, socket string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, append(args, "--socket", socket), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// events decodes the lines of -o json and returns the kinds.
func kinds(t *testing.T, lines string) []string {
	t.Helper()
	var out []string
	dec := json.NewDecoder(strings.NewReader(lines))
	for {
		var e control.Event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatalf("%v in %s", err, lines)
		}
		out = append(out, e.Event)
	}
}

func TestAnnounceWaitsForAll(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 2, Bytes: 4 << 20}, Steps: []report.Images{
		controltest.Row(1, report.Ready, report.Ready), // the version before is no reason to be done
		controltest.Row(2, report.Ready, report.Fetching, report.Excluded), controltest.Row(2, report.Ready, report.Importing, report.Excluded), controltest.Row(2, report.Ready, report.Ready, report.Excluded)}}
	socket := controltest.Serve(t, f)
	code, out, errs := seeder(t.Context(), socket, "announce", "app:v1", "-o", "json")
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	got := strings.Join(kinds(t, out), " ")
	if want := "preparing announced progress progress progress ready done"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
}

func TestAnnouncePlain(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Digest: "sha256:1234", Version: 1, Bytes: 4 << 20},
		Steps: []report.Images{controltest.Row(1, report.Ready, report.Fetching), controltest.Row(1, report.Ready, report.Ready)}}
	code, out, errs := seeder(t.Context(), controltest.Serve(t, f), "announce", "app:v1")
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, out, "app:v1: announced as version 1, sha256:1234, 4 MiB", "app:v1 on n2: fetching 25% (because)",
		"app:v1 on n2: ready", "app:v1: version 1 is ready on 2 of 2 nodes")
	if strings.Contains(out, "\x1b") {
		t.Errorf("control sequences although it is no terminal: %q", out)
	}
}

func TestAnnounceDetached(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Waiting)}}
	code, out, errs := seeder(t.Context(), controltest.Serve(t, f), "announce", "app:v1", "--detach", "-o", "json")
	if code != cli.ExitDone || strings.Join(kinds(t, out), " ") != "preparing announced done" {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}

// TestAnnounceSeveral: images that containerd has are announced by one command, each once.
func TestAnnounceSeveral(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Waiting)}}
	socket := controltest.Serve(t, f)
	args := []string{"announce", "--detach", "-o", "json"}
	for i := range 100 {
		args = append(args, fmt.Sprintf("registry.example.com/some/team/some-app-%d:v1", i))
	}
	code, out, errs := seeder(t.Context(), socket, append(args, "registry.example.com/some/team/some-app-0:v1")...)
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	if got := strings.Count(strings.Join(kinds(t, out), " "), "announced"); got != 100 || len(f.Orders) != 100 {
		t.Errorf("%d events, %d orders", got, len(f.Orders))
	}
}

// TestAnnounceSeveralPartly: where some of several images are announced, it is said which and
// which are not; the command to follow them has them all.
func TestAnnounceSeveralPartly(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Fetching)},
		Refused: map[string]error{"docker.io/library/b:v1": errors.New("b is damaged")}}
	socket := controltest.Serve(t, f)
	code, out, errs := seeder(t.Context(), socket, "announce", "a:v1", "b:v1", "c:v1", "-o", "json")
	want := "b is damaged\n  announced: a:v1 c:v1\n  not announced: b:v1"
	if code != cli.ExitFailed || !strings.Contains(errs, want) {
		t.Errorf("exit code %d: %s, want %q", code, errs, want)
	}
	if got := strings.Join(kinds(t, out), " "); got != "preparing announced preparing preparing announced error" {
		t.Errorf("events %s", got)
	}
	code, _, errs = seeder(t.Context(), socket, "announce", "app:v1", "worker:v1", "--timeout", "300ms")
	if code != cli.ExitNotConverged || !strings.Contains(errs, "follow it with `seeder wait app:v1 worker:v1`") || strings.Contains(errs, "not announced") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestNotConvergedInTime(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Failed, report.Fetching, report.Excluded)}}
	socket := controltest.Serve(t, f)
	code, _, errs := seeder(t.Context(), socket, "announce", "app:v1", "--timeout", "300ms")
	if code != cli.ExitNotConverged {
		t.Errorf("exit code %d, want %d", code, cli.ExitNotConverged)
	}
	clitest.WantAll(t, errs, "not converged within 300ms", "seeder wait app:v1", "app:v1 on n2: failed (because)", "app:v1 on n3: fetching 25%")
	if strings.Contains(errs, "n1") || strings.Contains(errs, "n4") {
		t.Errorf("names nodes that nobody waits for: %s", errs)
	}
	code, out, _ := seeder(t.Context(), socket, "wait", "app:v1", "--timeout", "300ms", "-o", "json")
	if code != cli.ExitNotConverged || !strings.HasSuffix(strings.Join(kinds(t, out), " "), " error") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestInterruptStopsOnlyTheWaiting: Ctrl-C is exit code 3 and says that the
// seeding goes on.
func TestInterruptStopsOnlyTheWaiting(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Fetching)}}
	ctx, cancel := context.WithCancel(t.Context())
	var errs bytes.Buffer
	out := cancelOn{"fetching", cancel}
	code := run(ctx, []string{"announce", "app:v1", "--socket", controltest.Serve(t, f)}, nil, out, &errs)
	if code != cli.ExitNotConverged {
		t.Errorf("exit code %d, want %d", code, cli.ExitNotConverged)
	}
	clitest.WantAll(t, errs.String(), "stopped waiting; seeding continues", "seeder wait app:v1")
}

// cancelOn ends the context when text is written: the user at Ctrl-C.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.text)) {
		c.cancel()
	}
	return len(p), nil
}

func TestSupersededAndWithdrawn(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready, report.Fetching), controltest.Row(2, report.Ready, report.Ready)}}
	code, _, errs := seeder(t.Context(), controltest.Serve(t, f), "announce", "app:v1")
	if code != cli.ExitFailed {
		t.Errorf("exit code %d, want %d", code, cli.ExitFailed)
	}
	clitest.WantAll(t, errs, "announced again by n1 as version 2", "seeder wait app:v1")

	gone := controltest.Row(2)
	gone.Images[0].State = "withdrawn"
	f = &controltest.Node{Steps: []report.Images{controltest.Row(1, report.Fetching), gone}}
	socket := controltest.Serve(t, f)
	code, _, errs = seeder(t.Context(), socket, "wait", "app:v1")
	if code != cli.ExitFailed {
		t.Errorf("exit code %d, want %d", code, cli.ExitFailed)
	}
	clitest.WantAll(t, errs, "app:v1 is withdrawn", "nothing to wait for")
	if code, _, errs = seeder(t.Context(), socket, "wait"); code != cli.ExitDone {
		t.Errorf("waiting for everything: exit code %d: %s", code, errs)
	}
}

func TestArchiveGoesToTheDaemon(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := errors.Join(os.WriteFile(file, []byte("x"), 0o600), os.Truncate(file, 64<<20)); err != nil { // more than any buffer on the way
		t.Fatal(err)
	}
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Archive: []string{"docker.io/library/app:v1"}, Steps: []report.Images{controltest.Row(1, report.Ready)}}
	socket := controltest.Serve(t, f)
	code, out, errs := seeder(t.Context(), socket, "announce", "--from", file)
	if code != cli.ExitDone {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, out, "sending the image to the daemon (64 MiB)", "app:v1: version 1 is ready on 1 of 1 nodes")
	if len(f.Imported) != 1000 {
		t.Errorf("the daemon read %d bytes", len(f.Imported))
	}

	// Every image of an archive is announced, and waited for.
	f.Archive, f.Orders = append(f.Archive, "docker.io/library/base:v1"), nil
	base := controltest.Row(1, report.Ready).Images[0]
	base.Reference = "docker.io/library/base:v1"
	one := f.Steps[0]
	f.Steps = []report.Images{one, {Images: append(slices.Clone(one.Images), base)}}
	f.Unnamed = []string{`"UPPER:1", which is not an image reference`}
	code, out, errs = seeder(t.Context(), socket, "announce", "--from", file, "--on", "zone=a")
	if code != cli.ExitDone {
		t.Errorf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, out, `left out of the archive: "UPPER:1", which is not an image reference`, "app:v1: announced as version 1", "base:v1: announced as version 1", "app:v1: version 1 is ready", "base:v1: version 1 is ready")
	want := []control.Order{{Ref: "docker.io/library/app:v1", On: []string{"zone=a"}}, {Ref: "docker.io/library/base:v1", On: []string{"zone=a"}}}
	slices.SortFunc(f.Orders, func(a, b control.Order) int { return strings.Compare(a.Ref, b.Ref) }) // both are announced at once
	if !reflect.DeepEqual(f.Orders, want) {
		t.Errorf("announced %v, want %v", f.Orders, want)
	}
	f.Archive = f.Archive[:1]
	if code, _, errs = seeder(t.Context(), socket, "announce", "app:v1", "--from", file); code != cli.ExitDone {
		t.Errorf("with REF: exit code %d: %s", code, errs)
	}
	f.Archive = nil
	if code, _, errs = seeder(t.Context(), socket, "announce", "--from", file); code != cli.ExitUsage || !strings.Contains(errs, "has no name for its image") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	// The archive is refused while most of it is not sent yet: the answer arrives
	// anyway.
	f.Err = errors.New("image.tar is not an image archive")
	if code, _, errs = seeder(t.Context(), socket, "announce", "--from", file); code != cli.ExitFailed || !strings.Contains(errs, "is not an image archive") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

// TestArchiveFromStandardInput: docker save … | seeder announce --from -
func TestArchiveFromStandardInput(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Archive: []string{"docker.io/library/app:v1"}, Steps: []report.Images{controltest.Row(1, report.Ready)}}
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"announce", "--from", "-", "--socket", controltest.Serve(t, f)}, strings.NewReader("an archive"), &out, &errs)
	if code != cli.ExitDone || string(f.Imported) != "an archive" {
		t.Errorf("exit code %d, imported %q: %s%s", code, f.Imported, &out, &errs)
	}
	clitest.WantAll(t, out.String(), "sending the image to the daemon\n")
}

// TestWhichVersion: what REF@DIGEST and --rollback ask of the daemon.
func TestWhichVersion(t *testing.T) {
	t.Parallel()
	hex := strings.Repeat("cd", 32)
	for _, tc := range []struct {
		args []string
		want control.Order
	}{
		{[]string{"app:v1"}, control.Order{Ref: "docker.io/library/app:v1"}},
		{[]string{"app:v1@sha256:" + hex}, control.Order{Ref: "docker.io/library/app:v1", At: digest.Digest("sha256:" + hex)}},
		{[]string{"app@sha256:" + hex}, control.Order{Ref: "docker.io/library/app@sha256:" + hex, At: digest.Digest("sha256:" + hex)}},
		{[]string{"--rollback", "app:v1"}, control.Order{Ref: "docker.io/library/app:v1", Rollback: true}},
		{[]string{"app:v1", "--on", "zone=a", "--on", "role!=gpu"}, control.Order{Ref: "docker.io/library/app:v1", On: []string{"zone=a", "role!=gpu"}}},
	} {
		f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready)}}
		code, _, errs := seeder(t.Context(), controltest.Serve(t, f), append([]string{"announce", "--detach", "--from", "containerd"}, tc.args...)...)
		if code != cli.ExitDone || !reflect.DeepEqual(f.Orders, []control.Order{tc.want}) {
			t.Errorf("%v: exit code %d, %v, want %v: %s", tc.args, code, f.Orders, tc.want, errs)
		}
	}
	// The daemon does not rely on its own command for that.
	err := control.Dial(controltest.Serve(t, &controltest.Node{})).Post(t.Context(), "/v1/announce", map[string][]string{"ref": {"app:v1"}, "digest": {"sha256:ab"}}, nil)
	if cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("a bad digest: %v", err)
	}
}

// TestNoSuchNode: --on that matches nobody is asked about, or needs --yes.
func TestNoSuchNode(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Announced: control.Announced{Version: 1}, Steps: []report.Images{controltest.Row(1, report.Ready)}}
	socket := controltest.Serve(t, f)
	code, _, errs := seeder(t.Context(), socket, "announce", "app:v1", "--on", "zone=nowhere")
	if code != cli.ExitUsage || len(f.Orders) > 0 {
		t.Errorf("exit code %d, announced %v", code, f.Orders)
	}
	clitest.WantAll(t, errs, "--on zone=nowhere matches no alive node; the nodes have zone=a", "--yes")
	if code, _, errs = seeder(t.Context(), socket, "announce", "app:v1", "--on", "zone=nowhere", "--yes"); code != cli.ExitDone || len(f.Orders) != 1 {
		t.Errorf("with --yes: exit code %d, announced %v: %s", code, f.Orders, errs)
	}
	if code, _, errs = seeder(t.Context(), socket, "announce", "app:v1", "--on", "zone"); code != cli.ExitUsage || !strings.Contains(errs, "want key=value or key!=value") {
		t.Errorf("no selector: exit code %d: %s", code, errs)
	}
}

// TestPurgeSaysWhoKeepsIt: a node where a container uses the image.
func TestPurgeSaysWhoKeepsIt(t *testing.T) {
	t.Parallel()
	gone := controltest.Row(2, report.Excluded, report.Excluded)
	gone.Images[0].State = "withdrawn"
	f := &controltest.Node{Steps: []report.Images{controltest.Row(1, report.Ready, report.Ready), gone}}
	socket := controltest.Serve(t, f)
	code, out, errs := seeder(t.Context(), socket, "withdraw", "--purge", "app:v1")
	if code != cli.ExitDone {
		t.Errorf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, out, "app:v1: withdrawn and removed on 2 of 2 nodes")
	if code, _, errs = seeder(t.Context(), socket, "withdraw", "--force", "app:v1"); code != cli.ExitUsage || !strings.Contains(errs, "--force is for --purge") {
		t.Errorf("--force alone: exit code %d: %s", code, errs)
	}
}

func TestErrorsOfTheNode(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Err: fmt.Errorf("it is not announced; nearest: app:v1 (%w)", fs.ErrNotExist)}
	socket := controltest.Serve(t, f)
	for _, args := range [][]string{{"images", "ap:v1"}, {"withdraw", "ap:v1"}, {"announce", "ap:v1"}} {
		code, _, errs := seeder(t.Context(), socket, args...)
		if code != cli.ExitFailed {
			t.Errorf("%v: exit code %d, want %d", args, code, cli.ExitFailed)
		}
		clitest.WantAll(t, errs, "nearest: app:v1")
	}
	for _, args := range [][]string{{"images", "A B"}, {"withdraw", "A B"}, {"wait", "A B"}} {
		if code, _, errs := seeder(t.Context(), socket, args...); code != cli.ExitUsage || !strings.Contains(errs, "invalid image reference") {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
	// The daemon does not rely on its own command for that.
	err := control.Dial(socket).Post(t.Context(), "/v1/withdraw", map[string][]string{"ref": {"A B"}}, nil)
	if cli.ExitCode(err) != cli.ExitUsage {
		t.Errorf("withdraw A B: %v", err)
	}
}

func TestWaitForWhatIsNotAnnouncedYet(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Err: fs.ErrNotExist, Steps: []report.Images{controltest.Row(1, report.Ready)}}
	socket := controltest.Serve(t, f)
	code, _, errs := seeder(t.Context(), socket, "wait", "app:v1", "--timeout", "300ms")
	if code != cli.ExitNotConverged {
		t.Errorf("exit code %d: %s", code, errs)
	}
	clitest.WantAll(t, errs, "not everything that was asked for is announced")
	timer := time.AfterFunc(150*time.Millisecond, func() {
		f.Mu.Lock()
		defer f.Mu.Unlock()
		f.Err = nil
	})
	defer timer.Stop()
	if code, out, errs := seeder(t.Context(), socket, "wait", "app:v1", "--timeout", "20s"); code != cli.ExitDone {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}

func TestWithdraw(t *testing.T) {
	t.Parallel()
	gone := controltest.Row(2, report.Excluded)
	gone.Images[0].State = "withdrawn"
	f := &controltest.Node{Steps: []report.Images{gone}}
	socket := controltest.Serve(t, f)
	for _, args := range [][]string{{"withdraw", "app:v1"}, {"withdraw", "--purge", "registry.example.com/me/app:v2"}, {"withdraw", "--purge", "--force", "x"}} {
		if code, _, errs := seeder(t.Context(), socket, args...); code != cli.ExitDone {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
	if got, want := strings.Join(f.Withdrawn, ", "), "docker.io/library/app:v1 false false, registry.example.com/me/app:v2 true false, docker.io/library/x:latest true true"; got != want {
		t.Errorf("withdrawn %s, want %s", got, want)
	}
}
