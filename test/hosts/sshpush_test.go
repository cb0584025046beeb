package hosts

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"seeder/test/harness"
)

// mayPush is the line of sudoers in docs/push.md.
const mayPush = harness.SSHUser + " ALL=(root) NOPASSWD: /run/bin/seeder dial-stdio"

// laptop is a machine outside the cluster, which reaches the first host by ssh.
func laptop(n *harness.Network) *harness.Host {
	n.T.Helper()
	l := n.AddHost(harness.Newest)
	return l
}

// push runs seeder push on a machine.
func push(l *harness.Host, args string) (string, error) {
	l.T.Helper()
	out, err := l.In(l.T.Context(), "sh", "-c", "TMPDIR=/var/lib/tmp SEEDER_SSH='"+l.SSH()+"' "+harness.SeederBin(l.T)+" push "+args+" 2>&1").CombinedOutput()
	return string(out), err
}

// TestSeederPush: from a machine with ssh to one host, as a user who is not root, images of
// Docker, Podman and an archive get to three hosts by one command. Of a second build the
// changed layer alone crosses the cable. registry.bind is off, and nothing is left of a push.
func TestSeederPush(t *testing.T) {
	n := harness.NewCluster(t, harness.Newest, 3, "")
	a := n.Hosts[0]
	a.StartSSH(mayPush)
	cluster := n.Hosts
	l := laptop(n)
	to := harness.SSHUser + "@" + a.Address
	docker := harness.Docker(l)
	pushed := func(args string, wants ...string) (sent int64) {
		t.Helper()
		before := l.SentBytes()
		out, err := push(l, args)
		if err != nil {
			t.Fatalf("seeder push %s: %v\n%s", args, err, out)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("seeder push %s printed:\n%s\nwant %q", args, out, want)
			}
		}
		if left := a.Sh("ls /var/lib/seeder/pushed") + l.Sh("ls /var/lib/tmp"); left != "" {
			t.Errorf("the push left %q", left)
		}
		return l.SentBytes() - before
	}
	docker.Build(docker.BuildContext("one"), harness.ShortName)
	first := pushed(to+" "+harness.ShortName, harness.ShortName+": version 1 is ready on 3 of 3 nodes", "through ssh to "+to)
	for _, h := range cluster {
		h.Ready("one")
	}
	docker.Build(docker.BuildContext("two"), harness.ShortName)
	second := pushed(to+" "+harness.ShortName, "sent 2 of 4 blobs", "version 2 is ready on 3 of 3 nodes")
	for _, h := range cluster {
		becomes(h, "two")
	}
	again := pushed(to+" "+harness.ShortName, "sent 0 of 4 blobs")
	t.Logf("bytes that left the laptop: the first build %d, the second %d, the same again %d", first, second, again)
	if second > 64<<10 || first < 10*second || again > second {
		t.Errorf("the first build took %d bytes, the second %d, the same again %d", first, second, again)
	}

	podman := harness.Podman(l)
	podman.Build(podman.BuildContext("by podman"), "podman-app:v1")
	pushed(to+" podman-app:v1 --from podman", "podman-app:v1: version 1 is ready on 3 of 3 nodes")
	img := harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/app:v1", Says: "by file", Payload: 1 << 20, Seed: 3})
	pushed(to+" "+harness.DockerArchive(t, n.Dir, img), "app:v1: version 1 is ready on 3 of 3 nodes")
	for ref, says := range map[string]string{"docker.io/library/podman-app:v1": "by podman", "docker.io/library/app:v1": "by file"} {
		for _, h := range cluster {
			if got := h.RunContainer(ref); got != says {
				t.Errorf("a container from %s on %s prints %q", ref, h.Name, got)
			}
		}
	}
	if list := a.Ctr("leases", "ls", "-q"); strings.Contains(list, "archive") {
		t.Errorf("a lease of an import is left: %s", list)
	}
}

// TestSeederPushRefused: what is wrong on the way to the daemon is said with its fix, with
// the exit code of a daemon that cannot be reached.
func TestSeederPushRefused(t *testing.T) {
	n := harness.NewNetwork(t, "")
	none, asks, bare := n.AddHost(harness.Newest), n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	none.StartSSH(mayPush) // where no daemon runs
	asks.StartSSH("")
	bare.StartSSH(mayPush)
	bare.Sh("rm /run/bin/seeder")
	l := laptop(n)
	file := harness.DockerArchive(t, n.Dir, harness.NewImage(t, harness.ImageSpec{Ref: "docker.io/library/app:v1", Says: "x", Payload: 1 << 10, Seed: 4}))
	for _, tc := range []struct{ host, more, want string }{
		{harness.SSHUser + "@10.77.0.99", "", "ssh to me@10.77.0.99 failed: ssh: connect to host 10.77.0.99 port 22: "},
		{"nobody-there@" + none.Address, "", "Permission denied (publickey)"},
		{harness.SSHUser + "@" + none.Address, "", "on me@" + none.Address + ": no seeder daemon answers on /run/seeder/"},
		{harness.SSHUser + "@" + none.Address, "--sudo=false --seeder /run/bin/seeder", "no seeder daemon answers on /run/seeder/"},
		{harness.SSHUser + "@" + asks.Address, "", "allow this one command without it, there and once: echo 'me ALL=(root) NOPASSWD: /usr/bin/seeder dial-stdio' | sudo tee /etc/sudoers.d/seeder-push"},
		{harness.SSHUser + "@" + bare.Address, "", "asks for a password; if seeder is installed there, "},
		{harness.SSHUser + "@" + bare.Address, "--sudo=false", "seeder is missing on me@" + bare.Address},
	} {
		out, err := push(l, tc.host+" "+file+" "+tc.more)
		if harness.ExitCode(err) != 4 || !strings.Contains(out, tc.want) {
			t.Errorf("seeder push %s %s: exit code %d, %s\nwant 4 and %q", tc.host, tc.more, harness.ExitCode(err), out, tc.want)
		}
	}
}

// TestSeederPushAborted: of a push that is interrupted or killed nothing is announced, no
// half of a layer stays, and no process; the next one goes on with the layers that are there.
func TestSeederPushAborted(t *testing.T) {
	n := harness.NewNetwork(t, "80mbit")
	a := n.AddHost(harness.Newest)
	a.StartContainerd()
	a.StartSeeder()
	a.StartSSH(mayPush)
	l := laptop(n)
	to := harness.SSHUser + "@" + a.Address
	img := harness.NewImage(t, harness.ImageSpec{Ref: harness.FullName, Says: "whole", Payload: 48 << 20, Seed: 5})
	file := harness.DockerArchive(t, n.Dir, img)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		d := l.Start([]string{"SEEDER_SSH=" + l.SSH()}, harness.SeederBin(t), "push", to, file)
		harness.Eventually(t, 30*time.Second, "a layer is on its way", func() error {
			if out := a.Sh("find /var/lib/seeder/pushed -name 'upload-*' -size +1M"); out == "" {
				return errors.New(d.Log.Tail(5))
			}
			return nil
		})
		syscall.Kill(d.PID, sig)
		code := d.Wait(t, 15*time.Second)
		if sig == syscall.SIGINT && (code != 3 || !strings.Contains(d.Log.Tail(5), "nothing is announced") || l.Sh("ls /var/lib/tmp") != "") {
			t.Errorf("interrupted: exit code %d, %s, and %q is left", code, d.Log.Tail(5), l.Sh("ls /var/lib/tmp"))
		}
		harness.Eventually(t, 15*time.Second, "nothing is left of what was cut off", func() error {
			if left := a.Sh("ls /var/lib/seeder/pushed | grep upload- || true") + a.Sh("pgrep -af 'dial-stdi[o]' || true") + l.Sh("pgrep -af 'dial-stdi[o]' || true"); left != "" {
				return fmt.Errorf("%q", left)
			}
			return nil
		})
		if got := a.Target(harness.FullName); got != "" {
			t.Errorf("%s is in containerd: %s", harness.FullName, got)
		}
		if out := a.Run("images"); !strings.Contains(out, "nothing is announced") {
			t.Errorf("after %v:\n%s", sig, out)
		}
	}
	if out, err := push(l, to+" "+file); err != nil || !strings.Contains(out, "is ready on 1 of 1 node") {
		t.Errorf("another try: %v\n%s", err, out)
	}
	a.Ready("whole")
	if left := a.Sh("ls /var/lib/seeder/pushed"); left != "" {
		t.Errorf("the push left %q", left)
	}
	wantLeases(a)
}

// forward brings the registry of a host to an address on the laptop's loopback, by ssh.
func forward(l, to *harness.Host, address string) {
	l.T.Helper()
	_, port, _ := strings.Cut(address, ":")
	tunnel := l.Start(nil, append(strings.Fields(l.SSH()), "-N", "-L", port+":"+mirror, harness.SSHUser+"@"+to.Address)...)
	harness.Eventually(l.T, 10*time.Second, "the port is forwarded", func() error {
		conn, err := harness.Dial(l, address)
		if err != nil {
			return fmt.Errorf("%w: %s", err, tunnel.Log.Tail(3))
		}
		return conn.Close()
	})
}

// TestPushThroughSSHForwarding: a registry on a host's loopback, a port that ssh forwards, and
// what everybody has: docker push, skopeo copy, containerd's transfer service, and the pusher of
// its Go client, which nerdctl pushes with.
func TestPushThroughSSHForwarding(t *testing.T) {
	n := harness.NewNetwork(t, "")
	for range 3 {
		h := n.AddHost(harness.Newest)
		h.StartContainerd()
		h.StartSeeder("SEEDER_REGISTRY_BIND="+mirror, "SEEDER_REGISTRY_PUSH=true")
	}
	a, cluster := n.Hosts[0], n.Hosts
	a.AwaitMembers(3)
	a.StartSSH(mayPush + ", /usr/bin/cut -d\\: -f2 /var/lib/seeder/registry-credentials")
	l := laptop(n)
	ssh := l.SSH()
	to := harness.SSHUser + "@" + a.Address
	bin, err := filepath.Abs("../../bin/docker/usr/bin/docker")
	if err != nil {
		t.Fatal(err)
	}
	e := harness.Docker(l)
	e.Build(e.BuildContext("from the laptop"), harness.ShortName)
	forward(l, a, mirror)
	password := ssh + " " + to + " sudo -n cut -d: -f2 /var/lib/seeder/registry-credentials"
	l.Sh("set -e; export DOCKER_CONFIG=/run/docker-config; " + password + " | " + bin + " login -u seeder --password-stdin " + mirror + " >&2; " +
		bin + " tag " + harness.ShortName + " " + mirror + "/" + harness.ShortName + "; " + bin + " push " + mirror + "/" + harness.ShortName)
	l.Sh(bin + " save " + harness.ShortName + " -o /run/app.tar; skopeo copy -q --insecure-policy --dest-tls-verify=false --dest-creds seeder:$(" + password + ") docker-archive:/run/app.tar docker://" + mirror + "/by-skopeo:v1")
	l.StartContainerd()
	for i, how := range []string{"--local", "--local=false"} {
		name := fmt.Sprint("by-containerd:v", i)
		l.ImportImage(harness.ImageSpec{Ref: mirror + "/" + name, Says: "from the laptop", Payload: 1 << 20, Gzip: i == 0, Seed: uint64(30 + i)})
		l.Ctr("images", "push", how, "--plain-http", "--user", "seeder:"+strings.TrimSpace(l.Sh(password)), mirror+"/"+name)
	}
	for _, ref := range []string{harness.FullName, "docker.io/library/by-skopeo:v1", "docker.io/library/by-containerd:v0", "docker.io/library/by-containerd:v1"} {
		a.Run("wait", ref, "--timeout", "1m")
		for _, h := range cluster {
			if got := h.RunContainer(ref); got != "from the laptop" {
				t.Errorf("a container from %s on %s prints %q", ref, h.Name, got)
			}
		}
	}
}
