package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/control/controltest"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/reload"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
	"seeder/p2p/trust"
	"seeder/store"
)

// find is the one finding of a check about a subject.
func find(t *testing.T, list []finding, name, subject string) finding {
	t.Helper()
	var found []finding
	for _, f := range list {
		if f.Name == name && strings.Contains(f.Subject, subject) {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d findings of %s about %q, want one: %+v", len(found), name, subject, list)
	}
	return found[0]
}

// wantFinding checks the state of the one finding and what its texts hold.
func wantFinding(t *testing.T, list []finding, name, subject, state, detail, fix string) {
	t.Helper()
	f := find(t, list, name, subject)
	if f.State != state || !strings.Contains(f.Detail, detail) || !strings.Contains(f.Fix, fix) {
		t.Errorf("%s %s: %+v, want %s with %q and %q", name, subject, f, state, detail, fix)
	}
	if (f.State == stateProblem || f.State == StateWarning) && f.Fix == "" {
		t.Errorf("%+v says nothing that helps", f)
	}
}

// newTestExam examines with a configuration file in a directory of the test's own.
func newTestExam(t *testing.T, conf string) *exam {
	t.Helper()
	dir := t.TempDir()
	conf = fmt.Sprintf("data_dir: %s/data\napi: {socket: %s/api.sock}\ncontainerd: {address: embedded}\n%s", dir, dir, conf)
	e := newExam(clitest.Env(t, conf, nil), "")
	e.root = dir
	return e
}

// runDoctor runs the command as the program does.
func runDoctor(t *testing.T, socket string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := &cobra.Command{Use: "seeder", SilenceErrors: true, SilenceUsage: true}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.Usagef("%w", err) })
	root.AddCommand(Command(&cli.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, LookupEnv: os.LookupEnv, Environ: os.Environ}))
	root.SetArgs(append(args, "--socket", socket))
	err := root.ExecuteContext(t.Context())
	return cli.ExitCode(err), out.String(), errs.String()
}

// TestDoctorWithoutDaemon: doctor says that it does not run and what keeps it from
// running: a bad configuration, no secret, a port that another process has.
func TestDoctorWithoutDaemon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	t.Setenv("HOME", t.TempDir())
	dir := t.TempDir()
	conf := filepath.Join(dir, "seeder.yaml")
	text := fmt.Sprintf("data_dir: %s/data\ngossip: {bind: %q}\ntransfer: {bind: %q}\nhttp: {bind: \"\"}\nlog: {level: loud}\ncontainerd: {address: embedded}\n",
		dir, u.LocalAddr(), l.Addr())
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := runDoctor(t, filepath.Join(dir, "api.sock"), "doctor", "-o", "json", "--config", conf)
	var r Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if code != cli.ExitFailed || r.OK {
		t.Errorf("exit code %d, ok %v", code, r.OK)
	}
	me := fmt.Sprintf("(pid %d)", os.Getpid())
	wantFinding(t, r.Checks, "config", "", stateProblem, `log.level: "loud"`, "seeder config check")
	wantFinding(t, r.Checks, "daemon", "", stateProblem, "not running: its configuration is invalid", "systemctl restart seeder")
	wantFinding(t, r.Checks, "ports", "transfer.bind", stateProblem, me, "set transfer.bind to a free port")
	wantFinding(t, r.Checks, "ports", u.LocalAddr().String()+"/udp", stateProblem, me, "set gossip.bind to a free port")
	wantFinding(t, r.Checks, "members", "", StateSkipped, "the daemon does not answer", "")
	f := find(t, r.Checks, "daemon", "")
	clitest.WantAll(t, f.Detail, "transfer.bind "+l.Addr().String()+"/tcp: another process has the port")

	code, out, _ = runDoctor(t, filepath.Join(dir, "api.sock"), "doctor", "--config", conf)
	if code != cli.ExitFailed {
		t.Errorf("exit code %d", code)
	}
	clitest.WantAll(t, out, "problem  config", "problem  daemon", "fix: ", "problems")
	if code, _, errs := runDoctor(t, "/none", "doctor", "-o", "yaml"); code != cli.ExitUsage {
		t.Errorf("a bad flag: exit code %d %s", code, errs)
	}
}

// TestDoctorDaemonHangs: a daemon that accepts and says nothing takes three seconds,
// not forever.
func TestDoctorDaemonHangs(t *testing.T) {
	t.Parallel()
	e := newTestExam(t, "")
	l, err := net.Listen("unix", e.loaded.API.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*askedTimeout)
	defer cancel()
	wantFinding(t, e.checkDaemon(ctx), "daemon", "api.sock", stateProblem, "hangs", "systemctl restart seeder")
	if ctx.Err() != nil {
		t.Error("it was waited for as long as there was time")
	}
	if !e.running(t.Context()) {
		t.Error("one that hangs counts as not running, so that its own ports seem taken by another")
	}
}

func TestDoctorNoSecret(t *testing.T) {
	t.Parallel()
	e := newTestExam(t, "")
	wantFinding(t, e.checkSecret(t.Context()), "secret", "", stateProblem, "no secret: gossip.bind", "systemctl restart seeder")
	clitest.WantAll(t, e.checkDaemon(t.Context())[0].Detail, "no usable secret")
	secret := filepath.Join(e.root, config.DefaultSecretFile)
	if err := errors.Join(os.MkdirAll(filepath.Dir(secret), 0o700), os.WriteFile(secret, []byte("Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, e.checkSecret(t.Context()), "secret", secret, StateWarning, "every user", "chmod 600")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, e.checkSecret(t.Context()), "secret", secret, StateOK, "", "")
}

// TestDoctorSecretRotated: the file has another secret than the daemon that runs,
// and reload fixes that; so for a setting that has changed.
func TestDoctorSecretRotated(t *testing.T) {
	t.Parallel()
	e := newTestExam(t, "")
	secret := filepath.Join(e.root, "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e.env.ConfigFile = filepath.Join(e.root, "with-secret.yaml")
	conf := fmt.Sprintf("node_name: n1\ndata_dir: %s/data\nsecret_file: %s\ncontainerd: {address: embedded}\napi: {socket: %s}\n", e.root, secret, e.loaded.API.Socket)
	if err := os.WriteFile(e.env.ConfigFile, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	write("Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA")
	first, err := config.Load(e.env, nil)
	if err != nil {
		t.Fatal(err)
	}
	held, err := k3s.LoadSecrets(first.Config, "/")
	if err != nil {
		t.Fatal(err)
	}
	r := &reload.Reloader{
		Load:    func() (config.Loaded, error) { return config.Load(e.env, nil) },
		Secrets: func(c config.Config) (k3s.FoundSecrets, error) { return k3s.LoadSecrets(c, "/") },
		Last:    first, Held: held, Level: &slog.LevelVar{}, Log: slog.New(slog.DiscardHandler), Node: anyNode{},
	}
	f := &controltest.Node{}
	c := control.NewServer(e.loaded.API.Socket, f, f, r, slog.New(slog.DiscardHandler))
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	look := func() *exam { return newExam(e.env, "") }
	wantFinding(t, look().checkSecret(t.Context()), "secret", secret, StateOK, "", "")
	wantFinding(t, look().checkConfig(t.Context()), "config", "", StateOK, "in use", "")

	write("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
	out := look().checkSecret(t.Context())
	wantFinding(t, out, "secret", secret, stateProblem, "the daemon still uses the previous secret", "seeder reload")
	if b, _ := json.Marshal(r.Pending()); bytes.Contains(b, []byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")) {
		t.Errorf("a secret is told: %s", b)
	}
	if err := os.WriteFile(e.env.ConfigFile, []byte(conf+"log: {level: debug}\nimages: {pin: false}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out = look().checkConfig(t.Context())
	wantFinding(t, out, "config", "log.level", StateWarning, "debug", "seeder reload")
	wantFinding(t, out, "config", "images.pin", StateWarning, "false", "systemctl restart seeder")
	if _, err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, look().checkSecret(t.Context()), "secret", secret, StateOK, "", "")
	wantFinding(t, look().checkConfig(t.Context()), "config", "images.pin", StateWarning, "false", "systemctl restart seeder")
	write("short")
	wantFinding(t, look().checkSecret(t.Context()), "secret", "", stateProblem, "at least 16 are needed", "systemctl restart seeder")
}

// anyNode takes every change.
type anyNode struct{}

func (anyNode) SetLimits(int64, int64)         {}
func (anyNode) SetSecrets(trust.Secrets) error { return nil }

// TestDoctorHangs: one check that hangs holds nobody else up, and is told.
func TestDoctorHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		began := time.Now()
		r := examine(t.Context(), []check{
			{"disk", func(context.Context) []finding { <-never; return nil }},
			{"slow", func(ctx context.Context) []finding { <-ctx.Done(); return one(finding{Name: "slow", State: StateOK}) }},
			{"quick", func(context.Context) []finding { return one(finding{Name: "quick", State: StateOK}) }},
		}, checkTimeout)
		if took := time.Since(began); took > 15*time.Second || r.OK || len(r.Checks) != 3 {
			t.Errorf("%+v after %s", r, took)
		}
		wantFinding(t, r.Checks, "disk", "", stateProblem, "hangs", "dmesg")
		wantFinding(t, r.Checks, "quick", "", StateOK, "", "")
		close(never)
	})
}

func TestDoctorPrints(t *testing.T) {
	t.Parallel()
	r := Report{Checks: []finding{{Name: "secret", State: stateProblem, Subject: "h2\x1b[2J", Detail: "differs\nvery", Fix: "copy it"}}}
	for i := range 9 {
		r.Checks = append(r.Checks, finding{Name: "clock", State: StateOK, Subject: fmt.Sprintf("n%d", i), Detail: "right"})
	}
	r.Checks = append(r.Checks, finding{Name: "disk", State: StateWarning, Subject: "/", Detail: "low", Fix: "free some"})
	var b bytes.Buffer
	if err := printReport(&b, term.Terminal{}, r, "text"); err != nil {
		t.Fatal(err)
	}
	want := `problem  secret      h2?[2J: differs
               very
         fix: copy it
ok       clock       n0, n1, n2, n3, n4, n5 and 3 more
warning  disk        /: low
         fix: free some

1 problem, 1 warning
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestDoctorDisk: a reserve that is reached, and one that nearly is.
func TestDoctorDisk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ minFree, state, detail, fix string }{
		{"99%", stateProblem, "fetches nothing before", "images.min_free"}, {"0", StateOK, "free", ""},
	} {
		e := newTestExam(t, fmt.Sprintf("images: {min_free: %q}\n", c.minFree))
		wantFinding(t, e.checkDisk(t.Context()), "disk", e.loaded.DataDir, c.state, c.detail, c.fix)
	}
	e := newTestExam(t, "")
	s, err := store.SpaceOf(e.root, store.Reserve{})
	if err != nil {
		t.Fatal(err)
	}
	near := newTestExam(t, fmt.Sprintf("images: {min_free: %q}\n", fmt.Sprintf("%dB", s.Free-s.Total/100)))
	wantFinding(t, near.checkDisk(t.Context()), "disk", "data", StateWarning, "reserved", "free space")
}

func TestDoctorJoinsNobody(t *testing.T) {
	t.Parallel()
	e := newTestExam(t, "gossip: {join: [127.0.0.1, \"127.9.9.9:1\", \"no such host.invalid\"]}\n")
	if e.configErr == nil {
		t.Fatal("a name with spaces is none")
	}
	e = newTestExam(t, "gossip: {join: [127.0.0.1, \"127.9.9.9:1\", no-such-host.invalid]}\n")
	wantFinding(t, e.checkJoin(t.Context()), "join", "", StateSkipped, "without a secret", "")
	secret := filepath.Join(e.root, config.DefaultSecretFile)
	if err := errors.Join(os.MkdirAll(filepath.Dir(secret), 0o700), os.WriteFile(secret, []byte("a secret of this test"), 0o600)); err != nil {
		t.Fatal(err)
	}
	out := e.checkJoin(t.Context())
	wantFinding(t, out, "join", "127.0.0.1", StateOK, "this host itself", "")
	wantFinding(t, out, "join", "127.9.9.9", stateProblem, "its transfer port 1/tcp cannot be reached: connection refused", "ufw allow 1/tcp && ufw allow 7950/udp")
	wantFinding(t, out, "join", "no-such-host.invalid", stateProblem, "failed to look up", "correct the name")
}

// member is a report of a member to and from which all ways are open.
func member(name string) report.MemberReport {
	m := report.MemberReport{Name: name, Transfer: "10.0.0.2:7951", Gossip: "10.0.0.2:7950", State: "alive", Version: "1", Clock: &report.Clock{TripMS: 4}}
	for _, what := range []string{report.WayTransfer, report.WayGossipUDP, report.WayLargeTransfer, report.WayLargeGossip} {
		m.Ways = append(m.Ways, report.Way{What: what, Out: true, State: report.WayOpen}, report.Way{What: what, State: report.WayOpen})
	}
	return m
}

func (d *p2pDiagnosis) set(what string, out bool, state, why string) {
	for i, w := range d.Members[0].Ways {
		if w.What == what && w.Out == out {
			d.Members[0].Ways[i].State, d.Members[0].Ways[i].Why = state, why
		}
	}
}

type p2pDiagnosis struct{ report.Diagnosis }

func diagnosis(members ...report.MemberReport) *p2pDiagnosis {
	return &p2pDiagnosis{report.Diagnosis{Node: "h1", Gossip: "10.0.0.1:7950", Transfer: "10.0.0.1:7951", Members: members}}
}

func TestDoctorOfMembers(t *testing.T) {
	t.Parallel()
	d := diagnosis(member("h2"))
	for _, f := range memberFindings(d.Diagnosis) {
		if f.State != StateOK {
			t.Errorf("%+v", f)
		}
	}
	d.set(report.WayTransfer, true, report.WayClosed, "connection refused")
	d.set(report.WayTransfer, false, report.WayUnknown, "it cannot be asked")
	d.set(report.WayGossipUDP, false, report.WayClosed, "no packet arrives")
	d.set(report.WayLargeTransfer, true, report.WayClosed, "no answer")
	d.set(report.WayLargeGossip, false, report.WayClosed, "small packets arrive, full ones do not")
	out := memberFindings(d.Diagnosis)
	wantFinding(t, out, "transfer", "h1 -> h2", stateProblem, "10.0.0.2:7951/tcp cannot be reached: connection refused", "on h2 allow 7951/tcp from 10.0.0.1")
	wantFinding(t, out, "transfer", "h2 -> h1", StateSkipped, "it cannot be asked", "")
	wantFinding(t, out, "gossip-udp", "h2 -> h1", stateProblem, "10.0.0.1:7950/udp cannot be reached: no packet arrives", "on h1 allow 7950/udp from 10.0.0.2: `ufw allow proto udp from 10.0.0.2 to any port 7950`")
	wantFinding(t, out, "mtu", "h1 -> h2", stateProblem, "full ones of connections do not", "ping -M do")
	wantFinding(t, out, "mtu", "h2 -> h1", stateProblem, "full ones of gossip's packets do not", "ping -M do")
	wantFinding(t, out, "members", "h2", StateOK, "alive", "")

	dead := report.MemberReport{Name: "h3", Transfer: "10.0.0.3:7951", Gossip: "10.0.0.3:7950", State: "dead", Ways: []report.Way{{What: report.WayTransfer, Out: true, State: report.WayClosed}}}
	back := dead
	back.Name, back.Ways = "h4", []report.Way{{What: report.WayTransfer, Out: true, State: report.WayOpen}}
	out = memberFindings(diagnosis(dead, back, report.MemberReport{Name: "h5", State: "alive", Reason: "speaks protocol 9"}, report.MemberReport{Name: "h6", State: "alive", Differs: true}).Diagnosis)
	wantFinding(t, out, "members", "h3", stateProblem, "nothing answers at 10.0.0.3:7950", "systemctl status seeder")
	wantFinding(t, out, "members", "h4", stateProblem, "the host is up (open: transfer)", "7950/udp")
	wantFinding(t, out, "members", "h5", stateProblem, "speaks protocol 9", "same version")
	wantFinding(t, out, "members", "h6", stateProblem, "its secret differs", "same secret")

	lone := diagnosis()
	lone.Alone = "join 10.0.0.9: refused"
	lone.Strangers = []report.Stranger{{Host: "10.0.0.7", At: time.Now()}}
	out = memberFindings(lone.Diagnosis)
	wantFinding(t, out, "members", "", StateWarning, "join 10.0.0.9: refused", "see join")
	wantFinding(t, out, "secret", "10.0.0.7", stateProblem, "another secret", "seeder reload")
}

// TestDoctorOfClocks: of three clocks the one that is off is named, also where it is
// this host's; of two, neither.
func TestDoctorOfClocks(t *testing.T) {
	t.Parallel()
	ahead := func(name string, d time.Duration) report.MemberReport {
		m := member(name)
		m.Clock.AheadMS = d.Milliseconds()
		return m
	}
	wantStates := func(want string, members ...report.MemberReport) {
		t.Helper()
		var got []string
		for _, f := range clockFindings(diagnosis(members...).Diagnosis) {
			got = append(got, f.Subject+" "+f.State)
		}
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("got %s, want %s", s, want)
		}
	}
	wantStates("h1 ok, h2 ok, h3 problem", ahead("h2", 10*time.Millisecond), ahead("h3", -time.Hour))
	wantStates("h1 problem, h2 ok, h3 ok", ahead("h2", time.Hour), ahead("h3", time.Hour))
	wantStates("h1 ok, h2 ok, h3 warning", ahead("h2", 0), ahead("h3", 5*time.Second))
	wantStates("h2 problem", ahead("h2", time.Minute))
	slow := ahead("h2", 3*time.Second)
	slow.Clock.TripMS = 8000
	wantStates("h2 ok", slow)
	f := clockFindings(diagnosis(ahead("h2", -time.Minute)).Diagnosis)
	wantFinding(t, f, "clock", "h2", stateProblem, "1m0s behind this host's", "on the one of h1 and h2 that is wrong")
}
