package main

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/p2p"
)

func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	f := &fakeNode{}
	reg := prometheus.NewRegistry()
	reg.MustRegister(newGauges(f))
	h := newHTTPD("127.0.0.1:0", f, reg, slog.New(slog.DiscardHandler))
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "waiting for containerd: no such socket") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, body := get("/metrics")
	wantAll(t, body, `seeder_members{state="alive"} 1`, `seeder_members{state="dead"} 1`, `seeder_members{state="left"} 0`,
		`seeder_images{state="ready"} 1`, `seeder_images{state="fetching"} 1`, `seeder_images{state="waiting"} 1`, "seeder_containerd_up 0")
}

func TestHTTPPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := newHTTPD(l.Addr().String(), &fakeNode{}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	err = h.Open()
	if err == nil {
		t.Fatal("no error")
	}
	wantAll(t, err.Error(), "http.bind "+l.Addr().String(), "in use", "set http.bind")
}

func TestDataDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	first := &running{cfg: Config{DataDir: dir}}
	if err := first.lockDataDir(); err != nil {
		t.Fatal(err)
	}
	second := &running{cfg: Config{DataDir: dir}}
	if err := second.lockDataDir(); err == nil || !strings.Contains(err.Error(), "another seeder daemon uses it") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	if err := second.lockDataDir(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	if err := second.close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	third := &running{cfg: Config{DataDir: filepath.Join(file, "data")}}
	if err := third.lockDataDir(); err == nil || !strings.Contains(err.Error(), "set data_dir to") {
		t.Errorf("data_dir below a file: %v", err)
	}
}

func TestLoadSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	absent := filepath.Join(dir, "absent")
	good := write("good", "# the new one\n0123456789012345678901234567890123456789\n\nabcdefghijklmnopqrstuvwxyz\n")
	open := Config{Gossip: GossipConfig{Bind: "0.0.0.0:7950"}, Transfer: TransferConfig{Bind: "127.0.0.1:7951"}}
	local := Config{Gossip: GossipConfig{Bind: "127.0.0.1:7950"}, Transfer: TransferConfig{Bind: "[::1]:7951"}}
	advertised := local
	advertised.Transfer.Advertise = "10.0.0.1"
	named := open
	named.SecretFile = good
	short := open
	short.SecretFile = write("short", "abc\n")
	empty := open
	empty.SecretFile = write("empty", "# nothing\n")
	for _, tc := range []struct {
		name, file string
		cfg        Config
		secrets    int
		want       []string // in the error, or in the note
	}{
		{"default file", good, open, 2, nil},
		{"named file", absent, named, 2, nil},
		{"none, other hosts", absent, open, 0, []string{"no secret", "gossip.bind 0.0.0.0:7950", "seeder secret generate > /etc/seeder/secret", "mode 0600"}},
		{"none, advertised to other hosts", absent, advertised, 0, []string{"transfer.advertise 10.0.0.1"}},
		{"none, loopback", absent, local, 1, []string{"stays alone"}},
		{"too short", absent, short, 0, []string{short.SecretFile, "seeder secret generate"}},
		{"nothing in it", absent, empty, 0, []string{empty.SecretFile}},
		{"named but absent", absent, Config{SecretFile: absent}, 0, []string{"secret_file", absent, "seeder secret generate"}},
		{"a directory", dir, open, 0, []string{dir}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			secrets, text, err := loadSecrets(tc.cfg, tc.file)
			if len(secrets) != tc.secrets || (err == nil) != (tc.secrets > 0) {
				t.Fatalf("%d secrets, %v; want %d", len(secrets), err, tc.secrets)
			}
			if err != nil {
				text = err.Error()
				if exitCodeOf(err) != exitUsage {
					t.Errorf("exit code %d", exitCodeOf(err))
				}
			}
			wantAll(t, text, tc.want...)
		})
	}
}

func TestShortRef(t *testing.T) {
	t.Parallel()
	dgst := "sha256:" + strings.Repeat("ab", 32)
	for full, want := range map[string]string{
		"docker.io/library/k3s-dashboard:latest": "k3s-dashboard:latest",
		"docker.io/me/app:v1":                    "me/app:v1",
		"ghcr.io/me/app:v1":                      "ghcr.io/me/app:v1",
		"docker.io/library/app@" + dgst:          "app@" + dgst,
		"not a reference":                        "not a reference",
	} {
		if got := shortRef(full); got != want {
			t.Errorf("shortRef(%s) = %s, want %s", full, got, want)
		}
		if full == "not a reference" {
			continue
		}
		if back, err := normalizeRef(want); err != nil || back != full {
			t.Errorf("normalizeRef(%s) = %s, %v; want %s", want, back, err, full)
		}
	}
}

// TestLiveView draws what a terminal of 40×8 would show.
func TestLiveView(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &liveView{screen: screen{w: &out, term: terminal{live: true, width: 40, height: 8}}, rows: map[string]p2p.ImageState{}}
	img := row(1, p2p.Ready, p2p.Fetching, p2p.Ready, p2p.Waiting, p2p.Ready, p2p.Ready).Images[0]
	v.show(event{Event: eventAnnounced, Ref: img.Reference, Version: 1, Digest: img.Digest})
	v.show(event{Event: eventProgress, Image: &img})
	_, last, _ := strings.Cut(out.String(), "\x1b[1A")
	wantAll(t, last, "app:v1  ready on 4 of 6 nodes", "n2  fetching 25%  ██████░", "n4  waiting", "and 4 more nodes")
	for line := range strings.Lines(last) {
		text := strings.TrimSuffix(strings.NewReplacer("\x1b[2K", "", "\x1b[J", "").Replace(line), "\n")
		if n := len([]rune(text)); n > 40 {
			t.Errorf("%d columns: %q", n, text)
		}
	}
	if n := strings.Count(last, "\n"); n > 8 {
		t.Errorf("%d lines on 8:\n%s", n, last)
	}
}

func TestWriteErrorsEndACommand(t *testing.T) {
	t.Parallel()
	socket := serveControl(t, &fakeNode{})
	r, w := io.Pipe()
	r.Close()
	if code := run(t.Context(), []string{"members", "--socket", socket}, nil, w, io.Discard); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
}
