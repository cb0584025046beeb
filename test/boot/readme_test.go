package boot

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// step is a command line of README.md and how it is run.
type step struct {
	line string
	run  func(line string)
}

// TestReadme runs every command line that README.md shows, in its order, on real
// hosts. README.ko.md shows the same ones (docs.TestTranslation). A line that is
// not listed here fails, and so does one that README.md has no more.
func TestReadme(t *testing.T) {
	r := &readme{t: t, Network: harness.NewNetwork(t, "")}
	steps := []step{
		{"make demo", r.demo},
		{"make test", r.thisTest},
		{"make package", r.packages},
		{"dpkg -i bin/packages/seeder_*_amd64.deb", r.install},
		{"systemctl enable --now seeder", r.enable},
		{"seeder secret generate > /etc/seeder/secret", r.secret},
		{`printf 'gossip: {join: ["10.0.0.1"]}\n' > /etc/seeder/seeder.yaml`, r.join},
		{"seeder announce k3s-dashboard:latest", r.announce},
		{"seeder announce --from k3s-dashboard.tar", r.announceFile},
		{"docker save app:v1 app:v2 | seeder announce --from -", r.announceStream},
		{"seeder export app:v1 -o app-v1.tar", r.prints("exported sha256:")},
		{"seeder announce app:v1 --on zone=a", r.announceOn},
		{"seeder announce --rollback k3s-dashboard:latest", r.rollback},
		{"seeder images", r.prints("k3s-dashboard:latest", "app:v1", "app:v2", "h1", "h2")},
		{"seeder images k3s-dashboard:latest", r.prints("h1", "h2", "ready")},
		{"seeder members", r.prints("h1", "h2", "alive")},
		{"seeder status", r.prints("h1", "containerd")},
		{"seeder wait --timeout 5m", r.wait},
		{"seeder doctor", r.doctor},
		{"seeder withdraw app:v1", r.withdraw},
		{"seeder withdraw --purge app:v2", r.purge},
	}
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, s := range steps {
		listed = append(listed, s.line)
	}
	if shown := shownCommands(string(page)); !slices.Equal(shown, listed) {
		t.Fatalf("README.md shows\n  %s\nand this test runs\n  %s", strings.Join(shown, "\n  "), strings.Join(listed, "\n  "))
	}
	for _, s := range steps {
		t.Log("$ " + s.line)
		s.run(s.line)
	}
}

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// shownCommands are the command lines of a page, without their remarks.
func shownCommands(page string) (out []string) {
	for _, block := range shellBlock.FindAllStringSubmatch(page, -1) {
		for line := range strings.Lines(block[1]) {
			command, _, _ := strings.Cut(line, "  #")
			out = append(out, strings.TrimSpace(command))
		}
	}
	return out
}

// readme is what the commands of README.md are run on: this machine, booted hosts,
// and two hosts with containerd and Docker.
type readme struct {
	*harness.Network
	t    *testing.T
	k3s  *harness.Machine // a server of k3s that the packages are installed on
	a, b *harness.Host
	e    harness.Engine
}

// demo runs what make demo runs, once bin/seeder is built.
func (r *readme) demo(line string) {
	r.t.Helper()
	recipe := strings.TrimSpace(r.make(line))
	if !strings.HasSuffix(recipe, "\nbin/seeder demo") {
		r.t.Fatalf("%s runs:\n%s", line, recipe)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bin/seeder", "demo")
	cmd.Dir = "../.."
	if out := harness.Run(r.t, cmd); !strings.Contains(out, "4 nodes are up") || !strings.Contains(out, "4/4") {
		r.t.Errorf("%s printed:\n%s", line, out)
	}
}

// make is what make would run.
func (r *readme) make(line string) string {
	r.t.Helper()
	target, ok := strings.CutPrefix(line, "make ")
	if !ok {
		r.t.Fatalf("%s: not make", line)
	}
	// The make that runs this test has its own flags in the environment.
	cmd := exec.CommandContext(r.t.Context(), "env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "-n", target)
	cmd.Dir = "../.."
	return harness.Run(r.t, cmd)
}

// thisTest: make test is what runs this very test, among others.
func (r *readme) thisTest(line string) {
	r.t.Helper()
	recipe := r.make(line)
	for _, part := range []string{"staticcheck", "-race", "test/fuzz.sh", "./test/boot", "./test/hosts", "-p 2"} {
		if !strings.Contains(recipe, part) {
			r.t.Errorf("%s does not run %s:\n%s", line, part, recipe)
		}
	}
}

// packages: what the next lines install is what make package has made before this
// test, and where.
func (r *readme) packages(line string) {
	r.t.Helper()
	r.wants(r.make(line), "systemd/package.sh", `OUT="bin/packages"`, `ARCHES="amd64 arm64"`)
	files := builtPackages(r.t, "../../bin/packages", "amd64", "x86_64")
	n := harness.NewNetwork(r.t, "")
	r.k3s = n.AddMachine()
	r.k3s.Boot()
	r.k3s.AwaitBoot()
	r.k3s.InstallK3s()
	hand(r.k3s, files)
	r.k3s.Op("mkdir bin && ln -s /packages bin/packages")
}

func (r *readme) install(line string) {
	r.t.Helper()
	r.k3s.Op(line)
	r.k3s.Is("disabled", "inactive")
}

// enable: on a host of k3s that is all there is to do.
func (r *readme) enable(line string) {
	r.t.Helper()
	r.k3s.Op(line)
	r.k3s.Is("enabled", "active")
	r.k3s.AwaitMembers(1)
}

// secret makes two hosts without k3s a cluster: the secret is made on one and copied.
func (r *readme) secret(line string) {
	r.t.Helper()
	r.a, r.b = r.AddHost(harness.Newest), r.AddHost(harness.Newest)
	shell(r.a, line)
	info, err := os.Stat(r.a.Path("/etc/seeder/secret"))
	if err != nil || info.Mode().Perm() != 0o600 {
		r.t.Fatalf("%s: %v, %v", line, info, err)
	}
	content, err := os.ReadFile(r.a.Path("/etc/seeder/secret"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.b.Write("/etc/seeder/secret", string(content), 0o600)
}

// join tells the second host of the first and starts both.
func (r *readme) join(line string) {
	r.t.Helper()
	shell(r.b, strings.Replace(line, "10.0.0.1", r.a.Address, 1))
	shell(r.b, "seeder config check")
	shell(r.b, `echo 'labels: {zone: a}' >> /etc/seeder/seeder.yaml`)
	for _, h := range []*harness.Host{r.a, r.b} {
		h.StartContainerd()
		h.Seeder = h.Start(nil, harness.SeederBin(r.t), "daemon")
	}
	r.a.AwaitMembers(2)
	r.e = harness.Docker(r.a)
}

// announce: the image was built with Docker a moment ago.
func (r *readme) announce(line string) {
	r.t.Helper()
	r.e.Build(r.e.BuildContext("one"), harness.ShortName)
	r.wants(shell(r.a, line), "comes from docker", "is ready on 2 of 2 nodes")
	r.b.Ready("one")
}

func (r *readme) announceFile(line string) {
	r.t.Helper()
	archive := harness.NewImage(r.t, harness.ImageSpec{Ref: harness.ShortName, Says: "two", Payload: 1 << 20, Seed: 2}).DockerArchive(r.t, r.Dir)
	if err := os.Rename(archive, filepath.Join(r.Dir, "k3s-dashboard.tar")); err != nil {
		r.t.Fatal(err)
	}
	r.wants(shell(r.a, line), "version 2 is ready on 2 of 2 nodes")
	r.b.Ready("two")
}

func (r *readme) announceStream(line string) {
	r.t.Helper()
	for _, tag := range []string{"app:v1", "app:v2"} {
		r.e.Build(r.e.BuildContext(tag), tag)
	}
	r.wants(shell(r.a, line), "app:v1: version 1 is ready on 2 of 2 nodes", "app:v2: version 1 is ready on 2 of 2 nodes")
}

// announceOn: of the two hosts one has the label.
func (r *readme) announceOn(line string) {
	r.t.Helper()
	r.wants(shell(r.a, line), "is ready on 1 of 1 nodes")
}

func (r *readme) rollback(line string) {
	r.t.Helper()
	before := r.b.Metric("seeder_wire_received_bytes_total")
	r.wants(shell(r.a, line), "version 3 is ready on 2 of 2 nodes")
	r.b.Ready("one")
	if came := r.b.Metric("seeder_wire_received_bytes_total") - before; came > 300_000 {
		r.t.Errorf("%s: %.0f bytes came over the wire", line, came)
	}
}

// prints checks what a command says, by words.
func (r *readme) prints(words ...string) func(string) {
	return func(line string) {
		r.t.Helper()
		r.wants(shell(r.a, line), words...)
	}
}

// wait returns 0; where something is missing it says 3.
func (r *readme) wait(line string) {
	r.t.Helper()
	shell(r.a, line)
	if err := r.a.Try(nil, "wait", "none:v1", "--timeout", "100ms"); harness.ExitCode(err) != 3 {
		r.t.Errorf("wait for what is not there: %v", err)
	}
}

// doctor finds nothing that is wrong.
func (r *readme) doctor(line string) {
	r.t.Helper()
	shell(r.a, line)
}

func (r *readme) withdraw(line string) {
	r.t.Helper()
	shell(r.a, line)
	if got := r.b.RunContainer("docker.io/library/app:v1"); got != "app:v1" {
		r.t.Errorf("a withdrawn image prints %q", got)
	}
}

func (r *readme) purge(line string) {
	r.t.Helper()
	shell(r.a, line)
	for _, h := range []*harness.Host{r.a, r.b} {
		harness.Eventually(r.t, 30*time.Second, "app:v2 is gone from "+h.Name, func() error {
			if h.Target("docker.io/library/app:v2") != "" {
				return errors.New("it is there")
			}
			return nil
		})
	}
	if cell := cellOf(r.b, harness.ShortName); cell.State != report.Ready {
		r.t.Errorf("the other image is %+v", cell)
	}
}

func (r *readme) wants(out string, parts ...string) {
	r.t.Helper()
	for _, part := range parts {
		if !strings.Contains(out, part) {
			r.t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
}

// cellOf is this host's own cell of the row of ref.
func cellOf(h *harness.Host, ref string) report.NodeState {
	h.T.Helper()
	cells, err := h.States(ref)
	if err != nil {
		h.T.Fatal(err)
	}
	return cells[h.Name]
}

// shell runs a line as somebody would who is logged in to the host, with seeder
// and docker in the PATH.
func shell(h *harness.Host, line string) string {
	h.T.Helper()
	docker, err := filepath.Abs("../../bin/docker/usr/bin")
	if err != nil {
		h.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.T.Context(), 2*time.Minute)
	defer cancel()
	cmd := h.In(ctx, "sh", "-euc", "cd "+h.Net.Dir+"\n"+line)
	cmd.Env = append(h.Env(), "PATH="+filepath.Dir(harness.SeederBin(h.T))+":"+docker+":"+os.Getenv("PATH"))
	return harness.Run(h.T, cmd)
}
