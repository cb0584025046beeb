package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/p2p/report"
)

// TestContractOfJSON: the keys that scripts rely on.
func TestContractOfJSON(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Steps: []report.Images{controltest.Row(7, report.Ready, report.Fetching)}}
	socket := controltest.Serve(t, f)
	for command, keys := range map[string][]string{
		"images": {"images", "ref", "digest", "version", "size", "state", "announced_by", "announced_at", "nodes", "name",
			"done_bytes", "total_bytes", "reason", "ready", "total"},
		"members": {"members", "name", "address", "state", "version"},
		"status": {"node", "id", "version", "containerd", "address", "ok", "members", "converged", "images", "ready", "total",
			"transfers", "disk", "free_bytes"},
	} {
		code, out, errs := seeder(t.Context(), socket, command, "-o", "json")
		if code != cli.ExitDone || !json.Valid([]byte(out)) {
			t.Errorf("%s: exit code %d: %s%s", command, code, out, errs)
		}
		for _, key := range keys {
			if !strings.Contains(out, `"`+key+`":`) {
				t.Errorf("%s -o json lacks %q:\n%s", command, key, out)
			}
		}
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	f := &controltest.Node{Steps: []report.Images{controltest.Row(7, report.Ready, report.Fetching, report.Unreachable)}}
	socket := controltest.Serve(t, f)
	_, out, _ := seeder(t.Context(), socket, "images")
	clitest.WantAll(t, out, "IMAGE   DIGEST        VERSION  SIZE   READY  n1     n2            n3\n",
		"app:v1  abababababab  7        4 MiB  1/3    ready  fetching 25%  unreachable\n",
		"n3  app:v1  unreachable   because")
	_, out, _ = seeder(t.Context(), socket, "images", "app:v1")
	clitest.WantAll(t, out, "version 7, announced by n1", "ready on 1 of 3 nodes", "n2    fetching 25%  1 MiB of 4 MiB  because")
	_, out, _ = seeder(t.Context(), socket, "members")
	clitest.WantAll(t, out, "n1      alive         10.0.0.1:7951", "n2?[2J", "speaks ?[2J protocol 2")
	_, out, _ = seeder(t.Context(), socket, "status")
	clitest.WantAll(t, out, "red           this host waits for containerd: no such socket\n                seeder doctor\n              this host cannot join the cluster: the secrets differ",
		"n2?[2J has not answered", "members       3 alive, 1 away: n2?[2J\n", "join          failed: the secrets differ", "1 of 3 ready\n", "app:v1  1 MiB of 4 MiB at 1 MiB/s, 3s left from n2, n3")
	f.Steps = []report.Images{{}}
	_, out, _ = seeder(t.Context(), socket, "images")
	clitest.WantAll(t, out, "nothing is announced")
}

func TestShortRef(t *testing.T) {
	t.Parallel()
	dgst := "sha256:" + strings.Repeat("ab", 32)
	for full, want := range map[string]string{
		"docker.io/library/k3s-dashboard:latest": "k3s-dashboard:latest",
		"docker.io/me/app:v1":                    "me/app:v1",
		"registry.example.com/me/app:v1":         "registry.example.com/me/app:v1",
		"docker.io/library/app@" + dgst:          "app@" + dgst,
		"not a reference":                        "not a reference",
	} {
		if got := cli.ShortRef(full); got != want {
			t.Errorf("shortRef(%s) = %s, want %s", full, got, want)
		}
		if full == "not a reference" {
			continue
		}
		if back, err := cli.NormalizeRef(want); err != nil || back != full {
			t.Errorf("normalizeRef(%s) = %s, %v; want %s", want, back, err, full)
		}
	}
}

func TestWriteErrorsEndACommand(t *testing.T) {
	t.Parallel()
	socket := controltest.Serve(t, &controltest.Node{})
	r, w := io.Pipe()
	r.Close()
	if code := run(t.Context(), []string{"members", "--socket", socket}, nil, w, io.Discard); code != cli.ExitFailed {
		t.Errorf("exit code %d, want %d", code, cli.ExitFailed)
	}
}
