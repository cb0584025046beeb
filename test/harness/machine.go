package harness

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Machine is a host that boots a real systemd on a copy-on-write view of this
// machine's root. Its files and its network outlive a reboot; what runs does not.
type Machine struct {
	*Host          // what runs: its space is that of the machine's first process
	holder  *Space // holds the files and the network
	console *LockedBuffer
	Before  string // the files that were called after seeder before it was installed
}

// root is where the machine's root is, for holder.
func (m *Machine) root() string { return filepath.Join(m.Dir, "up", "root") }

// masked are units of Debian that have no business in a machine like this: they
// would ask this machine's kernel for something, or wait for hardware.
var masked = []string{
	"systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"systemd-remount-fs.service", "systemd-random-seed.service", "systemd-journald-audit.socket", "systemd-logind.service",
	"systemd-timesyncd.service", "systemd-networkd.service", "systemd-firstboot.service", "systemd-pcrphase.service",
	"sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
	"dev-hugepages.mount", "dev-mqueue.mount", "getty.target", "console-getty.service", "kmod-static-nodes.service",
	"ldconfig.service", "modprobe@.service", "systemd-sysusers.service", "systemd-hwdb-update.service", "dbus.socket", "dbus.service",
}

// AddMachine plugs a machine that is switched off into the switch.
func (n *Network) AddMachine() *Machine {
	n.T.Helper()
	i := len(n.Hosts) + 1
	h := &Host{T: n.T, Net: n, Program: "/usr/bin/seeder", Name: fmt.Sprintf("h%d", i), Address: fmt.Sprintf("10.77.0.%d", i), Version: Newest, Bin: k3sBin}
	h.Dir = filepath.Join(n.Dir, h.Name)
	m := &Machine{Host: h}
	for _, d := range []string{"up", "rancher"} {
		if err := os.MkdirAll(filepath.Join(h.Dir, d), 0o755); err != nil {
			n.T.Fatal(err)
		}
	}
	m.holder = n.newSpace(h.Name, m.filesScript(n.cgroups(h.Name)))
	h.Space = m.holder // whose the network is
	n.plug(h, i)
	n.Hosts = append(n.Hosts, h)
	n.T.Cleanup(m.dumpJournal)
	return m
}

// k3sBin is where k3s unpacks its containerd and the programs beside it.
const k3sBin = "/var/lib/rancher/k3s/data/current/bin"

// filesScript makes the machine's files, of which no index of man pages is kept. They are in memory, but for those of
// containerd, whose snapshots cannot lie on an overlay. The machine's /tmp is its own.
func (m *Machine) filesScript(cgroups string) string {
	containerd, err := filepath.Abs(Containerds[Newest])
	if err != nil {
		m.T.Fatal(err)
	}
	id := make([]byte, 16)
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	var mask strings.Builder
	for _, unit := range masked {
		fmt.Fprintf(&mask, "ln -s /dev/null etc/systemd/system/%s\n", unit)
	}
	return fmt.Sprintf(`
%[1]s
mount -t tmpfs -o mode=755 tmpfs %[2]s/up
cd %[2]s/up
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
rm -rf var/lib/man-db/auto-update etc/systemd/system etc/fstab usr/sbin/policy-rc.d var/log/journal var/lib/seeder etc/seeder etc/rancher
mkdir -p etc/systemd/system var/lib/rancher root/packages
%[3]s
echo %[4]s > etc/machine-id
echo %[5]s > etc/hostname
: > etc/fstab
mount --bind %[2]s/rancher var/lib/rancher
mkdir -p ./%[6]s
mount --bind %[7]s ./%[6]s
mkdir -p tmp
mount -t tmpfs -o mode=1777 tmpfs tmp
hostname %[5]s
ip link set lo up`, cgroups, m.Dir, mask.String(), hex.EncodeToString(id), m.Name, k3sBin, containerd)
}

// bootScript is what the first process does before it is systemd: it moves into the
// machine's cgroups, and takes the machine's root. The kernel's own settings cannot
// be written there. What is mounted is shared, as systemd has it: else credentials
// and private directories of units stay empty.
func (m *Machine) bootScript() string {
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, h := range CgroupMounts() { // each is the machine's own group, see Network.cgroups
		fmt.Fprintf(&script, "echo 0 > %s/cgroup.procs\n", h)
	}
	fmt.Fprintf(&script, "exec unshare --cgroup sh -c '\nset -e\nroot=%s\n", m.root())
	script.WriteString(`
mount --rbind $root $root
mount -t proc proc $root/proc
for f in sys sysrq-trigger; do
	[ -e $root/proc/$f ] || continue
	mount --bind $root/proc/$f $root/proc/$f
	mount -o remount,bind,ro $root/proc/$f
done
mount -t sysfs -o ro sysfs $root/sys
`)
	for i, h := range CgroupMounts() {
		if i == 0 && h != "/sys/fs/cgroup" {
			script.WriteString("mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup\n")
		}
		fmt.Fprintf(&script, "mkdir -p $root%[1]s\nmount --bind %[1]s $root%[1]s\n", h)
	}
	script.WriteString(`
mount -t tmpfs -o mode=755 tmpfs $root/dev
umask 0
for node in null:3 zero:5 full:7 random:8 urandom:9; do
	mknod $root/dev/${node%:*} c 1 ${node#*:}
done
mknod $root/dev/tty c 5 0
umask 022
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
cd $root
mkdir -p .old
pivot_root . .old
umount -l /.old
mount --make-rshared /
exec env -i container=seeder PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-mac_admin \
	/lib/systemd/systemd --unit=multi-user.target --log-level=info --show-status=no
'`)
	return script.String()
}

// Boot switches the machine on; AwaitBoot waits for systemd.
func (m *Machine) Boot() {
	m.T.Helper()
	cmd := exec.Command("nsenter", "-t", fmt.Sprint(m.holder.PID), "--mount", "--net", "--uts", "--ipc", "--",
		"unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--", "sh", "-c", m.bootScript())
	m.console = &LockedBuffer{}
	cmd.Stdout, cmd.Stderr = m.console, m.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.T.Fatalf("boot %s: %v", m.Name, err)
	}
	s := &Space{cmd: cmd, ended: make(chan struct{})}
	m.Net.spaces = append(m.Net.spaces, s)
	go func() { cmd.Wait(); close(s.ended) }() // Space.end waits for it
	s.PID = awaitChild(m.T, cmd.Process.Pid)
	m.Host.Space = s
}

// AwaitBoot waits until systemd has started what it starts at boot.
func (m *Machine) AwaitBoot() {
	m.T.Helper()
	Eventually(m.T, 60*time.Second, m.Name+" has booted", func() error {
		select {
		case <-m.Host.Space.ended:
			m.T.Fatalf("%s does not boot:\n%s", m.Name, m.console.Tail(20))
		default:
		}
		ctx, cancel := context.WithTimeout(m.T.Context(), 10*time.Second)
		defer cancel()
		out, err := m.In(ctx, "systemctl", "is-system-running").CombinedOutput()
		if state := strings.TrimSpace(string(out)); state != "running" && state != "degraded" {
			return fmt.Errorf("%q, %v\n%s", state, err, m.console.Tail(20))
		}
		return nil
	})
}

// WaitOff waits until the machine is off, as after systemctl reboot or poweroff.
func (m *Machine) WaitOff() {
	m.T.Helper()
	select {
	case <-m.Host.Space.ended:
	case <-time.After(60 * time.Second):
		m.T.Fatalf("%s does not go down", m.Name)
	}
	m.Host.Space.PID = 0 // might be another's before long
}

// Op runs a shell command as an operator would and returns what it printed.
func (m *Machine) Op(command string) string {
	m.T.Helper()
	out, err := m.TryOp(command)
	if err != nil {
		m.T.Fatalf("%s on %s: %v\n%s", command, m.Name, err, out)
	}
	return out
}

// TryOp is op for a command that may fail.
func (m *Machine) TryOp(command string) (string, error) {
	ctx, cancel := context.WithTimeout(m.T.Context(), 2*time.Minute)
	defer cancel()
	cmd := m.In(ctx, "env", "-i", "-C", "/root", "HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", command)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Show is a property of a unit.
func (m *Machine) Show(unit, property string) string {
	m.T.Helper()
	return strings.TrimSpace(m.Op(fmt.Sprintf("systemctl show --value -p %s %s", property, unit)))
}

// Showing waits until a property of seeder's unit is as wanted.
func (m *Machine) Showing(property, want string) {
	m.T.Helper()
	Eventually(m.T, 60*time.Second, fmt.Sprintf("%s of seeder on %s is %s", property, m.Name, want), func() error {
		if got := m.Show("seeder", property); got != want {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// Journal is what a unit has logged since the machine has booted for the first time.
func (m *Machine) Journal(unit string) string {
	out, _ := m.TryOp("journalctl --no-pager -o cat -u " + unit)
	return out
}

func (m *Machine) dumpJournal() {
	if !m.T.Failed() || m.Host.Space == m.holder {
		return
	}
	for _, command := range []string{
		"systemctl --no-pager --full status seeder k3s k3s-agent | head -60", "journalctl --no-pager -u seeder | tail -60",
		"systemctl --no-pager --failed", "seeder images; seeder members",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		out, err := m.In(ctx, "sh", "-c", command).CombinedOutput()
		cancel()
		m.T.Logf("--- %s: %s: %v\n%s", m.Name, command, err, out)
	}
}

// NeedSystemd says what lacks where systemd is not installed.
func NeedSystemd(t *testing.T) {
	t.Helper()
	NeedRoot(t)
	for _, program := range []string{"/lib/systemd/systemd", "/usr/bin/systemd-analyze", "/usr/bin/dpkg", "/usr/bin/rpm"} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("%v; `make deps` installs it", err)
		}
	}
}

// Is checks whether seeder is enabled and active.
func (m *Machine) Is(enabled, active string) {
	m.T.Helper()
	for verb, want := range map[string]string{"is-enabled": enabled, "is-active": active} {
		out, _ := m.TryOp("systemctl " + verb + " seeder") // fails unless it is
		if got := strings.TrimSpace(out); got != want {
			m.T.Fatalf("on %s seeder is %q, want %q", m.Name, got, want)
		}
	}
}

// MainPID is the process that systemd has for seeder; 0 for none.
func (m *Machine) MainPID() int {
	m.T.Helper()
	pid, err := strconv.Atoi(m.Show("seeder", "MainPID"))
	if err != nil {
		m.T.Fatal(err)
	}
	return pid
}

// Restarted waits until seeder is another process than pid, and ready in systemd's
// sense.
func (m *Machine) Restarted(pid int) {
	m.T.Helper()
	Eventually(m.T, 60*time.Second, "seeder runs anew on "+m.Name, func() error {
		if now := m.MainPID(); now == pid || now == 0 {
			return fmt.Errorf("process %d", now)
		}
		return nil
	})
	m.Showing("ActiveState", "active")
	m.Showing("SubState", "running")
}

// DropIn sets something of seeder's unit as systemctl edit does; "" takes it away.
func (m *Machine) DropIn(name, setting string) {
	m.T.Helper()
	file := "/etc/systemd/system/seeder.service.d/" + name + ".conf"
	command := "rm " + file + "; rmdir --ignore-fail-on-non-empty $(dirname " + file + ")"
	if setting != "" {
		command = fmt.Sprintf("mkdir -p $(dirname %[1]s) && printf '[Service]\\n%[2]s\\n' > %[1]s", file, setting)
	}
	m.Op(command + "; systemctl daemon-reload")
}

// Give copies a file to the machine.
func (m *Machine) Give(file, to string) {
	m.T.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		m.T.Fatal(err)
	}
	m.Write(to, string(b), 0o644)
}
