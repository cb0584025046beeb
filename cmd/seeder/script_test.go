package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/demo"
	"seeder/p2p/report"
)

// expectExitCode is the script command `exitcode N PROGRAM ARG...`: it runs the
// program and fails where it ends with another code. Standard output and error
// are there for `stdout` and `stderr` through files of these names.
func expectExitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N program arg...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// setFreePorts is `freeports NAME...`: each variable becomes a free port.
func setFreePorts(ts *testscript.TestScript, _ bool, names []string) {
	ports, err := demo.FreePorts(len(names))
	ts.Check(err)
	for i, name := range names {
		ts.Setenv(name, strconv.Itoa(ports[i]))
	}
}

// scriptWait is when what a script waits for counts as lost: a machine with other work
// takes many times as long as a quiet one.
const scriptWait = 5 * time.Minute

// waitForLog is `waitlog FILE TEXT`: it returns when the file has the text.
func waitForLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitlog file text")
	}
	deadline := time.After(scriptWait)
	for {
		data := readIfThere(ts.MkAbs(args[0]))
		if strings.Contains(data, args[1]) {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("%s has no %q after %s:\n%s", args[0], args[1], scriptWait, data)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func readIfThere(path string) string {
	data, err := cli.ReadBounded(path, 64<<20)
	if err != nil {
		return ""
	}
	return string(data)
}

// smallImage is about how many bytes the images of tests have: the race detector takes many
// times the CPU to compress them, to send and to decompress them.
const smallImage = 4 << 20

// makeDemoImage is `demoimage FILE`: it packs an image as the demo does, a small one.
func makeDemoImage(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	_, err := demo.PackImage(context.Background(), file, filepath.Dir(file), smallImage)
	ts.Check(err)
}

// waitReady is `waitready N SOCKET`: it returns when the one image is ready on N
// nodes.
func waitReady(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), scriptWait)
	defer cancel()
	c := control.Dial(ts.MkAbs(args[1]))
	for {
		var images report.Images
		ts.Check(c.Get(ctx, "/v1/images", nil, &images))
		if len(images.Images) == 1 && images.Images[0].Ready == want {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("not ready on %d nodes: %+v", want, images)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// isEmpty is `empty DIR`.
func isEmpty(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, e := range entries {
		ts.Fatalf("%s is not empty: %s", args[0], e.Name())
	}
}

// getURL is `geturl URL FILE`.
func getURL(ts *testscript.TestScript, _ bool, args []string) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
}
