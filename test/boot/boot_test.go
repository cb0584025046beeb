package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// TestBooted is an operator's life with seeder on three hosts of k3s, each with a
// systemd of its own: the packages, the unit, and what happens to either. The steps
// go on from each other, since a host takes longer to set up than any of them.
func TestBooted(t *testing.T) {
	harness.NeedSystemd(t)
	old := builtPackages(t, "../../bin/packages", "amd64", "x86_64")
	b := newBooted(t)
	b.step("make the next version", func() { b.next = nextPackages(t) })
	var first *released
	b.step("make a release", func() { first = makeRelease(t, "0.0.1"); first.check() })
	b.step("boot", func() {
		for _, m := range b.all {
			m.Boot()
		}
		for _, m := range b.all {
			m.AwaitBoot()
			hand(m, old, b.next)
		}
	})
	b.step("install", func() {
		for _, m := range b.all {
			m.Before = seederFiles(m)
			if m == b.c {
				installByApt(m, first) // and what follows upgrades it
			}
			m.Op("dpkg -i " + inHost(old.deb))
			m.Is("disabled", "inactive")
			if out := m.Op("seeder version"); !strings.HasPrefix(out, "seeder ") {
				t.Errorf("seeder version: %s", out)
			}
		}
	})
	b.step("enable", b.enable)
	b.step("announce", b.announce)
	b.step("a note of the kubelet", b.kubeletNote)
	b.step("order", b.order)
	b.step("reload", b.reload)
	b.step("kill", b.kill)
	b.step("k3s restarts", b.k3sRestarts)
	b.step("hang, and a containerd that is away", b.hangs)
	b.step("crash loop", b.crashLoop)
	b.step("reboot", b.reboot)
	b.step("upgrade under load", b.upgradeUnderLoad)
	b.step("upgrade while stopped", b.upgradeStopped)
	b.step("remove and purge", b.removeAndPurge)
	b.step("rpm", func() { b.rpm(old) })
	b.step("make install", b.makeInstall)
}

// booted are three hosts of k3s: a server and two agents.
type booted struct {
	t       *testing.T
	all     []*harness.Machine
	a, b, c *harness.Machine
	next    packageFiles
}

func newBooted(t *testing.T) *booted {
	n := harness.NewNetwork(t, "40mbit")
	b := &booted{t: t}
	for range 3 {
		b.all = append(b.all, n.AddMachine())
	}
	b.a, b.b, b.c = b.all[0], b.all[1], b.all[2]
	return b
}

func (b *booted) step(what string, do func()) {
	b.t.Helper()
	began := time.Now()
	do()
	b.t.Logf("%-40s %6.1f s", what, time.Since(began).Seconds())
}

const nextVersion = "99.0.0"

// nextPackages are those of a next version, with another program and a changed
// default configuration.
func nextPackages(t *testing.T) packageFiles {
	t.Helper()
	from := builtFrom(t)
	dir := copyTree(t, from)
	config := filepath.Join(dir, "configs", "seeder.yaml")
	b, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, append(b, "# what the next version adds\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	from.version = "v" + nextVersion
	return builtPackages(t, packagesOf(t, dir, from, "amd64"), "amd64", "x86_64")
}

// inHost is where a package is on the machines.
func inHost(file string) string { return "'/packages/" + filepath.Base(file) + "'" }

// hand copies packages to the machine.
func hand(m *harness.Machine, all ...packageFiles) {
	m.T.Helper()
	m.Op("mkdir -p /packages")
	for _, p := range all {
		for _, file := range []string{p.deb, p.rpm} {
			b, err := os.ReadFile(file)
			if err != nil {
				m.T.Fatal(err)
			}
			m.Write("/packages/"+filepath.Base(file), string(b), 0o644)
		}
	}
}

// daemonVersion is that of the program that runs.
func daemonVersion(m *harness.Machine) string {
	m.T.Helper()
	var s report.Status
	harness.Eventually(m.T, 30*time.Second, "the daemon answers on "+m.Name, func() error { return m.Try(&s, "status") })
	return s.Version
}

// seederFiles are the files that are called after seeder, links in systemd's
// directories among them, without those of dpkg and the logs.
func seederFiles(m *harness.Machine) string {
	m.T.Helper()
	return m.Op("find /etc /usr /lib/systemd /opt /run /srv /var -xdev -name '*seeder*' -not -path '/var/log/*' -not -path '/var/lib/rpm/*' | LC_ALL=C sort")
}

// enable: a host whose k3s is not there yet says so and goes on trying; the others
// need nothing but one command.
func (b *booted) enable() {
	if out, err := b.c.TryOp("systemctl enable --now seeder"); err == nil {
		b.t.Errorf("seeder starts on a host without a secret:\n%s", out)
	}
	for _, m := range []*harness.Machine{b.a, b.b} {
		m.InstallK3s()
		m.Op("systemctl enable --now seeder")
		m.Is("enabled", "active")
	}
	b.c.Showing("ActiveState", "activating")
	if status := b.c.Show("seeder", "ExecMainStatus"); status != "2" && status != "0" { // 0 at the moment of a try
		b.t.Errorf("the daemon without a secret ends with exit code %s", status)
	}
	if out := b.c.Journal("seeder"); !strings.Contains(out, "seeder secret generate") {
		b.t.Errorf("no word of what lacks in the journal:\n%s", out)
	}
	b.c.InstallK3s()
	b.c.Showing("ActiveState", "active")
	for _, m := range b.all {
		m.AwaitMembers(3)
		if out := m.Op("seeder config check && seeder config show"); !strings.Contains(out, "the token in /") || strings.Contains(out, harness.K3sPassword) {
			b.t.Errorf("%s:\n%s", m.Name, out)
		}
	}
}

// announce on the server: the image is on every host, in the words of systemctl too.
// The daemon has no capability.
func (b *booted) announce() {
	b.a.K3sImport(harness.ImageSpec{Ref: harness.ShortName, Says: "hello", Payload: 4 << 20, Seed: 1})
	if out := b.a.Op("seeder announce " + harness.ShortName); !strings.Contains(out, "ready on 3 of 3 nodes") {
		b.t.Error(out)
	}
	for _, m := range b.all {
		m.Ready("hello")
		status, err := os.ReadFile(m.Path(fmt.Sprintf("/proc/%d/status", m.MainPID())))
		if err != nil || !bytes.Contains(status, []byte("\nCapEff:\t0000000000000000\n")) || !bytes.Contains(status, []byte("\nCapBnd:\t0000000000000000\n")) {
			b.t.Errorf("%s: %v, capabilities in\n%s", m.Name, err, status)
		}
		m.Showing("StatusText", "3 members, 1 of 1 image ready")
	}
}

// kubeletNote: what the kubelet wrote of a pull that never ended is read in the sandbox of
// the unit, and said on another host.
func (b *booted) kubeletNote() {
	const note = "/var/lib/kubelet/image_manager/pulling/sha256-5eed"
	b.c.Op(`mkdir -p -m 750 /var/lib/kubelet && mkdir -p -m 700 ` + filepath.Dir(note) +
		` && printf '{"kind":"ImagePullIntent","image":"` + harness.ShortName + `"}' > ` + note + ` && chmod 600 ` + note + ` && touch -d '1 hour ago' ` + note)
	said := func(want bool) {
		b.t.Helper()
		harness.Eventually(b.t, 60*time.Second, "the kubelet's note is said", func() error {
			if out := b.a.Op("seeder images " + harness.ShortName); strings.Contains(out, note) != want {
				return errors.New(out)
			}
			return nil
		})
	}
	said(true)
	b.c.Op("rm " + note)
	said(false)
}

// order: nothing of k3s waits for seeder, and nothing of it ends with seeder.
func (b *booted) order() {
	for _, m := range b.all {
		for _, unit := range []string{"seeder", "k3s", "k3s-agent"} {
			other := map[bool]string{true: "k3s", false: "seeder"}[unit == "seeder"]
			deps := m.Op("systemctl show -p Before,After,Requires,Wants,BindsTo,PartOf,Requisite,Conflicts,PropagatesStopTo,StopPropagatedFrom,RequiredBy,WantedBy,BoundBy,ConflictedBy " + unit)
			if strings.Contains(deps, other) {
				b.t.Errorf("%s: %s has to do with %s:\n%s", m.Name, unit, other, deps)
			}
		}
		if after := m.Show("seeder", "After"); !strings.Contains(after, "network-online.target") {
			b.t.Errorf("%s: seeder comes after %s", m.Name, after)
		}
	}
}

// reload returns when the new configuration is in force, and fails where it is bad.
func (b *booted) reload() {
	pid := b.b.MainPID()
	b.b.Op("sed -i 's/^  level: info/  level: debug/' /etc/seeder/seeder.yaml && systemctl reload seeder")
	if log := b.b.Journal("seeder"); !strings.Contains(log, "configuration changed") || !strings.Contains(log, "log.level is now debug") {
		b.t.Errorf("the reload has changed nothing:\n%s", log)
	}
	out, err := b.b.TryOp("echo 'nonsense: 1' >> /etc/seeder/seeder.yaml; systemctl reload seeder")
	if log := b.b.Journal("seeder"); err == nil || !strings.Contains(log, `unknown key "nonsense"`) {
		b.t.Errorf("an invalid configuration: %v %s\n%s", err, out, log)
	}
	b.b.Op("sed -i '$d' /etc/seeder/seeder.yaml && systemctl reload seeder")
	b.b.Is("enabled", "active")
	if now := b.b.MainPID(); now != pid {
		b.t.Errorf("the daemon was process %d and is %d", pid, now)
	}
}

// signal sends a signal to the machine's daemon.
func signal(m *harness.Machine, name string) {
	m.T.Helper()
	m.Op(fmt.Sprintf("kill -%s %d", name, m.MainPID()))
}

func (b *booted) kill() {
	pid := b.b.MainPID()
	signal(b.b, "KILL")
	b.b.Restarted(pid)
	b.b.Ready("hello")
	b.a.AwaitMembers(3)
}

// k3sRestarts: containerd comes and goes with k3s; the daemon stays.
func (b *booted) k3sRestarts() {
	pid, containerd := b.c.MainPID(), b.c.Show("k3s-agent", "MainPID")
	b.c.Op("systemctl restart k3s-agent")
	if b.c.Show("k3s-agent", "MainPID") == containerd {
		b.t.Fatal("k3s has not restarted")
	}
	b.c.AwaitCRI()
	b.c.Ready("hello")
	if now := b.c.MainPID(); now != pid {
		b.t.Errorf("seeder was process %d and is %d", pid, now)
	}
	b.c.Op("systemctl restart seeder")
	b.c.Ready("hello")
}

// watchdogTest is a WatchdogSec that a test can wait for, on a machine under load.
const watchdogTest = 9 * time.Second

// hangs: on one host the daemon hangs and is started again; on another one
// containerd is away for longer than the watchdog waits, and the daemon stays.
func (b *booted) hangs() {
	for _, m := range []*harness.Machine{b.b, b.c} {
		m.DropIn("watchdog", fmt.Sprintf("WatchdogSec=%.0f", watchdogTest.Seconds()))
		m.Op("systemctl restart seeder")
		m.InState(m.Host, report.Ready, "")
	}
	hung, waits := b.b.MainPID(), b.c.MainPID()
	b.c.Op("systemctl stop k3s-agent")
	signal(b.b, "STOP")
	gone := watchdogFed(b.c)
	b.b.Restarted(hung)
	log := b.b.Journal("seeder")
	for _, want := range []string{"Watchdog timeout", "SIGABRT", "goroutine "} {
		if !strings.Contains(log, want) {
			b.t.Errorf("no %q in the journal of a daemon that hung", want)
		}
	}
	b.c.Showing("StatusText", "waiting for containerd: "+why(b.c)+"; 3 members, 0 of 1 image ready")
	harness.Eventually(b.t, 60*time.Second, "the watchdog is fed while containerd is away", func() error {
		if d := watchdogFed(b.c) - gone; d < watchdogTest {
			return fmt.Errorf("last fed %s after it went", d)
		}
		return nil
	})
	if now := b.c.MainPID(); now != waits || b.c.Show("seeder", "NRestarts") != "0" {
		b.t.Errorf("the daemon without containerd was process %d and is %d", waits, now)
	}
	b.c.Op("systemctl start k3s-agent")
	for _, m := range []*harness.Machine{b.b, b.c} {
		m.AwaitCRI()
		m.Ready("hello")
		m.DropIn("watchdog", "")
	}
}

// why is the reason for which the daemon waits for containerd.
func why(m *harness.Machine) string {
	m.T.Helper()
	var s report.Status
	harness.Eventually(m.T, 30*time.Second, m.Name+" says that containerd is away", func() error {
		if err := m.Try(&s, "status"); err != nil {
			return err
		}
		if s.Containerd.OK || s.Containerd.Reason == "" {
			return errors.New("it does not")
		}
		return nil
	})
	return s.Containerd.Reason
}

// watchdogFed is when the watchdog was fed last, on the monotonic clock.
func watchdogFed(m *harness.Machine) time.Duration {
	m.T.Helper()
	fed, err := strconv.ParseInt(m.Show("seeder", "WatchdogTimestampMonotonic"), 10, 64)
	if err != nil {
		m.T.Fatal(err)
	}
	return time.Duration(fed) * time.Microsecond
}

// crashLoop: a daemon that ends at once is started as often as it takes, and comes up
// by itself when what kept it from that is fixed.
func (b *booted) crashLoop() {
	m := b.b
	m.DropIn("fast", "RestartSec=100ms") // so that it need not take minutes
	m.Op("cp -p /etc/seeder/seeder.yaml /root/good.yaml && sed -i 's/^  bind: .*7950.*/  bind: nonsense/' /etc/seeder/seeder.yaml")
	if out, err := m.TryOp("systemctl restart seeder"); err == nil {
		b.t.Errorf("a start with an invalid configuration does not fail: %s", out)
	}
	harness.Eventually(b.t, 60*time.Second, "systemd goes on after the five starts that it has patience for elsewhere", func() error {
		if n, err := strconv.Atoi(m.Show("seeder", "NRestarts")); err != nil || n < 12 {
			return fmt.Errorf("%d, %v", n, err)
		}
		return nil
	})
	if log := m.Journal("seeder"); !strings.Contains(log, "gossip.bind") || !strings.Contains(log, "nonsense") {
		b.t.Errorf("no word of what is wrong in the journal:\n%s", log)
	}
	m.Op("cp -p /root/good.yaml /etc/seeder/seeder.yaml")
	m.Showing("ActiveState", "active")
	m.DropIn("fast", "")
	m.Ready("hello")
}

// reboot: what is announced while a host is down is on it after the boot, without a
// command.
func (b *booted) reboot() {
	if _, err := b.c.TryOp("systemctl reboot"); err != nil { // the connection may end first
		b.t.Log(err)
	}
	b.c.WaitOff()
	b.a.K3sImport(harness.ImageSpec{Ref: harness.ShortName, Says: "hello again", Payload: 4 << 20, Seed: 2})
	b.a.Op("seeder announce --detach " + harness.ShortName)
	b.c.Boot()
	b.c.AwaitBoot()
	b.c.Showing("ActiveState", "active")
	b.c.AwaitCRI()
	for _, m := range b.all {
		m.Ready("hello again")
	}
}

// TestBootedNothingIsLeft: what a run that is killed while a machine runs made goes
// with it or is removed by the next run.
func TestBootedNothingIsLeft(t *testing.T) {
	if os.Getenv("SEEDER_TEST_TO_BE_KILLED") != "" {
		m := harness.NewNetwork(t, "100mbit").AddMachine()
		m.Boot()
		m.AwaitBoot()
		fmt.Println("up")
		time.Sleep(time.Hour) // is killed here
	}
	harness.NeedSystemd(t)
	harness.NothingIsLeft(t)
}
