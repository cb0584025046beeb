package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
)

// export runs the command against a node.
func export(ctx context.Context, socket string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	env := &cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Socket: socket, LookupEnv: os.LookupEnv, Environ: os.Environ}
	cmd := Command(env, func(int) cobra.CompletionFunc { return cobra.NoFileCompletions })
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(append(args, "--socket", socket))
	err = cmd.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// only fails where other files than those named are in dir.
func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if strings.Join(have, " ") != strings.Join(want, " ") {
		t.Errorf("the directory has %q, want %q", have, want)
	}
}

const id = "sha256:abababababababababababababababababababababababababababababababab"

// TestExport: the archive is in the file, which has its name once it is whole, or goes to
// standard output; what it has is said beside it.
func TestExport(t *testing.T) {
	t.Parallel()
	archive := bytes.Repeat([]byte("archive "), 1<<18)
	f := &controltest.Node{
		WriteExport: func(w io.Writer) error { _, err := w.Write(archive); return err },
		Exported:    control.Exported{Reference: "docker.io/library/app:v2", Digest: id, Bytes: 3 << 20, Blobs: 2, Since: id, LeftOut: 3, LeftOutBytes: 10 << 20, Deltas: 1, DeltaBytes: 1 << 20, RebuiltBytes: 100 << 20},
	}
	socket := controltest.Serve(t, f)
	dir := t.TempDir()
	path := filepath.Join(dir, "app.tar")
	out, _, err := export(t.Context(), socket, "app:v2", "--since", "app:latest@"+id, "--platform", "linux/arm64", "-o", path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "app:v2: exported " + id + ", 3 MiB instead of 112 MiB; 3 blobs of abababababab left out, 1 layer as the difference (1 MiB for 100 MiB)\n"; out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if want := (control.ExportOrder{Ref: "docker.io/library/app:v2", Since: "docker.io/library/app:latest", SinceAt: id, Platform: "linux/arm64"}); f.ExportOrder != want {
		t.Errorf("asked for %+v, want %+v", f.ExportOrder, want)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, archive) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	only(t, dir, "app.tar")
	f.Exported = control.Exported{Reference: "docker.io/library/app:v2", Digest: id, Bytes: 3 << 20, Blobs: 2}
	out, errs, err := export(t.Context(), socket, "app:v2", "-o", "-")
	if err != nil || out != string(archive) || errs != "app:v2: exported "+id+", 3 MiB\n" {
		t.Errorf("%d bytes on standard output, %q, %v", len(out), errs, err)
	}
}

// TestExportLeavesNothing: where it ends before its end, by whatever, no file is left, and
// what was there before is as it was.
func TestExportLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(context.CancelFunc) func(io.Writer) error{
		"the daemon fails": func(context.CancelFunc) func(io.Writer) error {
			return func(w io.Writer) error {
				_, err := w.Write(make([]byte, 1<<20))
				return errors.Join(err, errors.New("blob sha256:1234 is\ndamaged"))
			}
		},
		"Ctrl-C": func(interrupt context.CancelFunc) func(io.Writer) error {
			return func(w io.Writer) error {
				for {
					if _, err := w.Write(make([]byte, 1<<20)); err != nil {
						return err
					}
					interrupt()
				}
			}
		},
		"the daemon dies": func(context.CancelFunc) func(io.Writer) error {
			return func(w io.Writer) error {
				_, _ = w.Write(make([]byte, 1<<20))
				panic(abort{})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f := &controltest.Node{WriteExport: write(cancel), Exported: control.Exported{Reference: "docker.io/library/app:v2", Digest: id}}
			dir := t.TempDir()
			path := filepath.Join(dir, "app.tar")
			if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := export(ctx, controltest.Serve(t, f), "app:v2", "-o", path)
			if err == nil || cli.ExitCode(err) == cli.ExitDone {
				t.Errorf("ended with %v", err)
			}
			if want := "is\ndamaged"; name == "the daemon fails" && !strings.Contains(err.Error(), want) {
				t.Errorf("%q, want %q", err, want)
			}
			if want := "no file is left"; name == "Ctrl-C" && !strings.Contains(err.Error(), want) {
				t.Errorf("%q, want %q", err, want)
			}
			only(t, dir, "app.tar")
			if got, err := os.ReadFile(path); err != nil || string(got) != "before" {
				t.Errorf("the file has %d bytes, %v", len(got), err)
			}
		})
	}
}

// abort is what a handler panics with; the server of net/http ends the connection then.
type abort struct{}

// TestExportRefused: what is wrong is said before anything is written.
func TestExportRefused(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Err: cli.Usagef("--since names the build")}
	socket := controltest.Serve(t, f)
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"seeder export app:v2 -o FILE": {"app:v2"},
		"invalid image reference":      {"APP:v2", "-o", "x"},
		"--since: invalid image":       {"app:v2", "--since", "APP", "-o", "x"},
		"--since names the build":      {"app:v2", "-o", filepath.Join(dir, "x")},
		"invalid digest":               {"app@sha256:12", "-o", "x"},
		"export takes one reference":   {},
	} {
		_, _, err := export(t.Context(), socket, args...)
		if err == nil || cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	only(t, dir)
	f.ExportOrder = control.ExportOrder{}
	f.Err, f.WriteExport = nil, func(io.Writer) error { return nil }
	for want, path := range map[string]string{"is a directory": dir, "no such file or directory": filepath.Join(dir, "none", "x")} {
		if _, _, err := export(t.Context(), socket, "app:v2", "-o", path); err == nil || cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("-o %s: %v, want %q", path, err, want)
		}
	}
	only(t, dir)
	if f.ExportOrder.Ref != "" {
		t.Error("the daemon was asked for an archive that no file can take")
	}
}

// TestExportToPipe: a pipe that -o names, as /dev/stdout may be one, gets the archive and
// nothing else.
func TestExportToPipe(t *testing.T) {
	t.Parallel()
	archive := bytes.Repeat([]byte("archive "), 1<<18)
	f := &controltest.Node{WriteExport: func(w io.Writer) error { _, err := w.Write(archive); return err },
		Exported: control.Exported{Reference: "docker.io/library/app:v2", Digest: id, Bytes: 3 << 20}}
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		p, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	out, errs, err := export(t.Context(), controltest.Serve(t, f), "app:v2", "-o", path)
	if err != nil || out != "" || errs != "app:v2: exported "+id+", 3 MiB\n" {
		t.Errorf("printed %q and %q, %v", out, errs, err)
	}
	if p := <-got; !bytes.Equal(p, archive) {
		t.Errorf("the pipe got %d bytes, want %d", len(p), len(archive))
	}
	if _, _, err := export(t.Context(), controltest.Serve(t, f), "app:v2", "-o", "/dev/full"); err == nil || err.Error() != "write /dev/full: no space left on device" {
		t.Errorf("a device that is full: %v", err)
	}
}
