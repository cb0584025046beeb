package boot

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"seeder/test/harness"
)

// upgradeUnderLoad: the host that sends and one that receives are upgraded while an
// image travels. It arrives, nothing that had is fetched again, and an edited
// configuration stays, though the package's has changed.
func (b *booted) upgradeUnderLoad() {
	const size = 24 << 20
	pids := []int{b.a.MainPID(), b.b.MainPID()}
	b.a.K3sImport(harness.ImageSpec{Ref: harness.ShortName, Says: "hello, new one", Random: size, Seed: 3})
	earlier := b.b.Metric("seeder_chunk_bytes_total")
	b.a.Op("seeder announce --detach " + harness.ShortName)
	var before float64
	harness.Eventually(b.t, 60*time.Second, "a third has arrived", func() error {
		if before = b.b.Metric("seeder_chunk_bytes_total") - earlier; before < size/3 {
			return fmt.Errorf("%.0f bytes", before)
		}
		return nil
	})
	b.b.Op("printf '\\n' | dpkg -i " + inHost(b.next.deb)) // the answer to: keep the edited one?
	b.a.Op("dpkg -i " + inHost(b.next.deb))
	for i, m := range []*harness.Machine{b.a, b.b} {
		m.Restarted(pids[i])
		m.Is("enabled", "active")
		if v := daemonVersion(m); v != "v"+nextVersion {
			b.t.Errorf("%s runs %s after the upgrade", m.Name, v)
		}
	}
	for _, m := range b.all {
		m.Ready("hello, new one")
	}
	received := b.b.Metric("seeder_wire_received_bytes_total")
	b.t.Logf("before the upgrade %.1f MB of chunks, after it %.1f MB on the wire, of %.1f MB", before/1e6, received/1e6, size/1e6)
	if received > size-before+4<<20 {
		b.t.Errorf("%.0f bytes came after the upgrade: what was verified before was fetched again", received)
	}
	if out := b.b.Op("grep -c '^  level: debug' /etc/seeder/seeder.yaml; ls /etc/seeder"); !strings.HasPrefix(out, "1\n") || !strings.Contains(out, "seeder.yaml.dpkg-dist") {
		b.t.Errorf("the edited configuration: %s", out)
	}
	if out := b.a.Op("tail -1 /etc/seeder/seeder.yaml"); out != "# what the next version adds\n" {
		b.t.Errorf("the configuration that nobody has edited ends with %q", out)
	}
}

func (b *booted) upgradeStopped() {
	b.c.Op("systemctl stop seeder && dpkg -i " + inHost(b.next.deb))
	b.c.Is("enabled", "inactive")
	b.c.Op("systemctl start seeder")
	b.c.Ready("hello, new one")
}

// removeAndPurge: remove keeps what belongs to the host, purge nothing; k3s and the
// images stay either way.
func (b *booted) removeAndPurge() {
	m := b.c
	k3s := m.Show("k3s-agent", "MainPID")
	id := m.Op("cat /var/lib/seeder/identity | sha256sum")
	m.Op("printf '# edited\\n' >> /etc/seeder/seeder.yaml; dpkg -r seeder")
	if out, _ := m.TryOp("systemctl is-active seeder; ls /usr/bin/seeder /usr/lib/systemd/system/seeder.service"); strings.Count(out, "No such file") != 2 || strings.HasPrefix(out, "active") {
		b.t.Errorf("after remove: %s", out)
	}
	leftBy(b.a, m)
	m.Op("tail -1 /etc/seeder/seeder.yaml | grep edited")
	if now := m.Op("cat /var/lib/seeder/identity | sha256sum"); now != id {
		b.t.Error("remove does not keep the node's identity")
	}
	m.Op("dpkg -i " + inHost(b.next.deb) + " && systemctl start seeder")
	m.Is("enabled", "active") // as it was
	m.Ready("hello, new one")
	m.Op("seeder secret generate > /etc/seeder/secret; echo SEEDER_LOG_LEVEL=debug > /etc/default/seeder; dpkg -P seeder")
	if left := seederFiles(m); left != m.Before {
		b.t.Errorf("purge leaves:\n%sbefore the installation there was:\n%s", left, m.Before)
	}
	if out, _ := m.TryOp("systemctl list-units --all --no-legend 'seeder*'; grep -lx seeder /proc/[0-9]*/comm; systemctl is-enabled seeder 2>&1"); !strings.HasPrefix(out, "Failed to get unit file state") && out != "not-found\n" && out != "not-found" { // as systemd 252 and 257 say it
		b.t.Errorf("after purge: %q", out)
	}
	if now := m.Show("k3s-agent", "MainPID"); now != k3s {
		b.t.Errorf("k3s was process %s and is %s", k3s, now)
	}
	if got := m.RunContainer(harness.FullName); got != "hello, new one" {
		b.t.Errorf("a container of the image after purge prints %q", got)
	}
	b.a.AwaitMembers(2)
}

// leftBy waits until m says that another one has left.
func leftBy(m *harness.Machine, other *harness.Machine) {
	m.T.Helper()
	harness.Eventually(m.T, 30*time.Second, other.Name+" has left", func() error {
		if s := m.MemberState(other.Host); s != "left" {
			return errors.New(s)
		}
		return nil
	})
}

// rpm: the same life with the other kind of package.
func (b *booted) rpm(old packageFiles) {
	m := b.c
	rpm := strings.TrimSpace(m.Op("rpm --help | grep -o -m1 -e --force-debian | sed 's/^/rpm /' || true"))
	if rpm == "" {
		rpm = "rpm" // since Debian 13 (rpm 4.20) there is no such option, nor need of it
	}
	rpm += " --nodeps "
	m.Op(rpm + "-i " + inHost(old.rpm))
	m.Is("disabled", "inactive")
	m.Op("systemctl enable --now seeder")
	m.Ready("hello, new one")
	pid := m.MainPID()
	m.Op("printf '# edited\\n' >> /etc/seeder/seeder.yaml; " + rpm + "-U " + inHost(b.next.rpm))
	m.Restarted(pid)
	m.Is("enabled", "active")
	if v := daemonVersion(m); v != "v"+nextVersion {
		b.t.Errorf("%s runs %s after the upgrade", m.Name, v)
	}
	m.Op("tail -1 /etc/seeder/seeder.yaml | grep edited; ls /etc/seeder/seeder.yaml.rpmnew")
	m.Op("systemctl stop seeder && " + rpm + "-U --oldpackage " + inHost(old.rpm))
	m.Is("enabled", "inactive")
	m.Op("systemctl start seeder && " + rpm + "-e seeder")
	leftBy(b.a, m)
	out, _ := m.TryOp("ls /usr/bin/seeder /etc/systemd/system/multi-user.target.wants/seeder.service; ls /var/lib/seeder/identity /etc/seeder/seeder.yaml.rpmsave")
	if strings.Count(out, "No such file") != 2 {
		b.t.Errorf("after erasing: %s", out)
	}
}

// makeInstall: a checkout is installed and removed again on a host that runs.
func (b *booted) makeInstall() {
	m := b.c
	m.Op("rm -rf /etc/seeder /var/lib/seeder")
	before := seederFiles(m)
	harness.Run(b.t, exec.CommandContext(b.t.Context(), "sh", "-c", fmt.Sprintf(
		"mkdir -p %[1]s/bin && cp -R ../../systemd ../../configs ../../docs ../../LICENSE ../../README*.md ../../Makefile %[1]s && cp -R ../../bin/seeder ../../bin/share %[1]s/bin", filepath.Join(m.Dir, "rancher", "checkout"))))
	const checkout = "/var/lib/rancher/checkout/systemd/install.sh "
	m.Op(checkout + "install")
	m.Is("disabled", "inactive")
	m.Op("systemctl enable --now seeder")
	m.Program = "/usr/local/bin/seeder"
	m.Ready("hello, new one")
	pid := m.MainPID()
	m.Op(checkout + "install && systemctl try-restart seeder") // as for a newer version
	m.Restarted(pid)
	m.Op(checkout + "uninstall && rm -r /var/lib/seeder")
	leftBy(b.a, m)
	if left := seederFiles(m); left != before {
		b.t.Errorf("uninstall leaves:\n%sbefore there was:\n%s", left, before)
	}
}
