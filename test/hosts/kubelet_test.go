package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

// kubelets are the kubelets to test with, by the first two numbers of what they call
// themselves: where their programs are. k3s 1.N has the kubelet of Kubernetes 1.N.
var kubelets = map[string]string{
	"1.36": "../../bin/kubelet-1.36",
	"1.37": "../../bin/kubelet-1.37",
}

const (
	pauseRef = "registry.example/pause:1"
	// silentRegistry is Docker Hub: first it refuses connections, then it accepts them and
	// says nothing, so that a pull waits as it does where packets are dropped.
	silentRegistry = "127.0.0.1:5001"
	// readOnly is where the kubelet lists its pods.
	readOnly = "127.0.0.1:10255"

	podDir     = "/etc/kubelet/pods"
	pullingDir = "/var/lib/kubelet/image_manager/pulling"
	pulledDir  = "/var/lib/kubelet/image_manager/pulled"
)

// kubeletConfig is standalone: no API server, pods from files. Nothing is written outside
// of the host, and everything unused is collected at each collection, however much room
// there is.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://` + harness.Socket + `
staticPodPath: ` + podDir + `
podLogsDir: /var/lib/kubelet/logs
volumePluginDir: /var/lib/kubelet/plugins-exec
fileCheckFrequency: 1s
syncFrequency: 2s
imageGCHighThresholdPercent: 1
imageGCLowThresholdPercent: 0
imageMinimumGCAge: 1s
evictionHard: {memory.available: 1Mi}
address: 127.0.0.1
readOnlyPort: 10255
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: ""}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
protectKernelDefaults: true
oomScoreAdj: 0
`

// criConfig is what containerd needs to run pods here: a sandbox image that the test
// brings, and Docker Hub where the silent registry is.
const criConfig = `
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseRef + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd-certs.d"
`

// kubeletHost is a host with a kubelet.
type kubeletHost struct {
	*harness.Host
	program string
	kubelet *harness.Daemon
}

// inCgroups runs a program in the host's cgroups, which are the whole hierarchies to it:
// the containers of pods mount theirs. In v2 processes are in the innermost groups only.
func inCgroups() []string {
	mounts := strings.Join(harness.CgroupMounts(), " ")
	return []string{"sh", "-ec", "for m in " + mounts + `; do echo 0 >$m/cgroup.procs; done
exec unshare --cgroup sh -ec 'for m in ` + mounts + `; do [ ! -e $m/cgroup.controllers ] || { mkdir -p $m/run; echo 0 >$m/run/cgroup.procs; }; done
exec "$@"' - "$@"`, "-"}
}

// prepareKubelet makes the host ready for a kubelet, and starts its containerd.
func prepareKubelet(h *harness.Host, program string) *kubeletHost {
	h.T.Helper()
	// The kernel's settings are not those of a name space: the kubelet shall find them as it
	// wants them, and set none.
	h.Sh(`set -e
mount -t tmpfs tmpfs /var/log
mkdir -p ` + podDir + ` $(dirname ` + dockerHub + `) /run/sysctl /var/lib/kubelet/plugins-exec
for s in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	f=/run/sysctl/$(echo ${s%=*} | tr / .)
	echo ${s#*=} >$f
	mount --bind $f /proc/sys/${s%=*}
done`)
	h.Write(dockerHub, "server = \"http://"+silentRegistry+"\"\n", 0o644)
	h.Write("/etc/kubelet/config.yaml", kubeletConfig, 0o644)
	h.StartContainerdWith(criConfig, inCgroups()...)
	h.ImportImage(harness.ImageSpec{Ref: pauseRef, Says: "pause\nexec busybox sleep 86400", Seed: 1})
	h.Ctr("images", "label", pauseRef, "io.cri-containerd.pinned=pinned")
	return &kubeletHost{Host: h, program: program}
}

func (k *kubeletHost) startKubelet() {
	k.T.Helper()
	k.kubelet = k.Start(nil, append(inCgroups(), k.program, "--config", "/etc/kubelet/config.yaml", "--root-dir", "/var/lib/kubelet", "--hostname-override", k.Name, "-v", "2")...)
	harness.Eventually(k.T, time.Minute, "the kubelet answers on "+k.Name, func() error {
		select {
		case <-k.kubelet.Done:
			k.T.Fatalf("the kubelet ended on %s:\n%s", k.Name, k.kubelet.Log.Tail(30))
		default:
		}
		_, err := k.pods()
		return err
	})
}

func (k *kubeletHost) restartKubelet() {
	k.T.Helper()
	k.kubelet.Stop(k.T, syscall.SIGKILL)
	k.startKubelet()
}

// dumpKubelet prints the end of the kubelet's log where the test has failed.
func (k *kubeletHost) dumpKubelet() {
	if k.T.Failed() && k.kubelet != nil {
		k.T.Logf("kubelet:\n%s", k.kubelet.Log.Tail(60))
	}
}

// addPod gives the kubelet a pod by a file. It uses the host's network, since there is no
// CNI plugin.
func (k *kubeletHost) addPod(name, image, policy string) {
	k.T.Helper()
	spec := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"namespace":"default"},"spec":{"hostNetwork":true,"terminationGracePeriodSeconds":1,"containers":[{"name":"c","image":%q,"imagePullPolicy":%q}]}}`, name, image, policy)
	k.addManifest(name, spec)
}

func (k *kubeletHost) addManifest(name, spec string) {
	k.T.Helper()
	k.Write("/etc/kubelet/"+name, spec, 0o644)
	if err := os.Rename(k.Path("/etc/kubelet/"+name), k.Path(podDir+"/"+name+".json")); err != nil {
		k.T.Fatal(err)
	}
}

func (k *kubeletHost) removePod(name string) {
	k.T.Helper()
	if err := os.Remove(k.Path(podDir + "/" + name + ".json")); err != nil {
		k.T.Fatal(err)
	}
	k.inPhase(name, "gone")
}

// manifest is a pod's file.
func (k *kubeletHost) manifest(name string) string {
	k.T.Helper()
	b, err := os.ReadFile(k.Path(podDir + "/" + name + ".json"))
	if err != nil {
		k.T.Fatal(err)
	}
	return string(b)
}

// pod is what the kubelet says of a pod's one container.
type pod struct {
	Phase     string // waiting's reason, Running, or what it ended with
	Container string // its id
	Restarts  int
}

// pods asks the kubelet for its pods, by the names of their files.
func (k *kubeletHost) pods() (map[string]pod, error) {
	out, err := k.In(k.T.Context(), "timeout", "5", "busybox", "wget", "-q", "-O", "-", "http://"+readOnly+"/pods").Output()
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
					State        struct {
						Waiting    *struct{ Reason, Message string }
						Running    *struct{}
						Terminated *struct{ Reason string }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	pods := map[string]pod{}
	for _, i := range list.Items {
		p := pod{Phase: "unknown"}
		for _, c := range i.Status.ContainerStatuses {
			p.Container, p.Restarts = c.ContainerID, c.RestartCount
			switch s := c.State; {
			case s.Waiting != nil:
				p.Phase = s.Waiting.Reason + ": " + s.Waiting.Message
			case s.Running != nil:
				p.Phase = "Running"
			case s.Terminated != nil:
				p.Phase = "ended: " + s.Terminated.Reason
			}
		}
		pods[strings.TrimSuffix(i.Metadata.Name, "-"+k.Name)] = p
	}
	return pods, nil
}

// inPhase waits until the kubelet says of a pod what begins with one of phases; gone stands
// for no such pod.
func (k *kubeletHost) inPhase(name string, phases ...string) pod {
	k.T.Helper()
	var p pod
	harness.Eventually(k.T, 3*time.Minute, fmt.Sprintf("pod %s on %s is %s", name, k.Name, strings.Join(phases, " or ")), func() error {
		pods, err := k.pods()
		if err != nil {
			return err
		}
		var known bool
		if p, known = pods[name]; !known {
			p.Phase = "gone"
		}
		for _, want := range phases {
			if strings.HasPrefix(p.Phase, want) {
				return nil
			}
		}
		return errors.New(p.Phase)
	})
	return p
}

// prints is what a pod's container printed.
func (k *kubeletHost) prints(name, want string) {
	k.T.Helper()
	harness.Eventually(k.T, 30*time.Second, "the container of "+name+" has printed", func() error {
		out, err := k.In(k.T.Context(), "sh", "-c", "cat /var/lib/kubelet/logs/default_"+name+"-*/c/*.log").CombinedOutput()
		if err != nil || !strings.Contains(string(out), " F "+want+"\n") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// askKubelet is what a kubelet calls itself, e.g. v1.36.3.
func askKubelet(t *testing.T, program string) string {
	t.Helper()
	out := strings.Fields(harness.Run(t, exec.CommandContext(t.Context(), program, "--version")))
	if len(out) != 2 || out[0] != "Kubernetes" {
		t.Fatalf("%s --version printed %q", program, out)
	}
	return out[1]
}

// sleeper says a word and sleeps.
func sleeper(ref, says string, seed uint64) harness.ImageSpec {
	return harness.ImageSpec{Ref: ref, Says: says + "\nexec busybox sleep 86400", Payload: 1 << 20, Seed: seed}
}

// TestKubelet: pods of a real kubelet start from what seeder brought, for each policy, by
// tag and by digest, for Always by way of seeder's registry; its restarts and its garbage
// collection change nothing about that, and where an earlier pull of the kubelet blocks an
// image, seeder says so, and what it says to do helps. The kubelets are built for minutes:
// this is not part of `make test`.
func TestKubelet(t *testing.T) {
	if os.Getenv("KUBELET") == "" {
		t.Skip("the kubelets are built for minutes; run `make kubelet`")
	}
	var rows compatibility
	t.Cleanup(func() { rows.report(t) })
	for minor, dir := range kubelets {
		for version := range harness.Containerds {
			t.Run(minor+"/containerd-"+version, func(t *testing.T) {
				t.Parallel() // it waits for the kubelet's collection most of the time
				program, err := filepath.Abs(filepath.Join(dir, "kubelet"))
				if err != nil {
					t.Fatal(err)
				}
				asked := askKubelet(t, program)
				if !strings.HasPrefix(asked, "v"+minor+".") {
					t.Fatalf("%s is kubelet %s, the tests call it %s", program, asked, minor)
				}
				n := harness.NewNetwork(t, "")
				a, b := n.AddHost(version), n.AddHost(version)
				a.StartContainerd()
				k := prepareKubelet(b, program)
				t.Cleanup(k.dumpKubelet)
				a.StartSeeder()
				b.StartSeeder("SEEDER_REGISTRY_BIND=" + mirror)
				k.mirrored()
				a.AwaitMembers(2)
				r := rows.begin(asked, b.Version, protocol(a))
				k.startKubelet()

				k.policies(a)
				k.secondBuild(a)
				k.restart()
				k.always(a)
				k.unfinishedPull(a)
				k.collection()
				rows.passed(t, r)
			})
		}
	}
}

// policies: pods wait for an image, it is announced, and they start.
func (k *kubeletHost) policies(a *harness.Host) {
	img := harness.NewImage(k.T, sleeper(harness.FullName, "one", 1))
	k.addPod("never", harness.ShortName, "Never")
	k.addPod("long", harness.FullName, "Never")
	k.addPod("ifnp", harness.ShortName, "IfNotPresent")
	k.addPod("digest", "docker.io/library/k3s-dashboard@"+digest.FromBytes(img.Manifest).String(), "Never")
	for _, name := range []string{"never", "long", "digest"} {
		k.inPhase(name, "ErrImageNeverPull")
	}
	k.inPhase("ifnp", "ErrImagePull", "ImagePullBackOff")
	a.Ctr("images", "import", img.OCIArchive(k.T, a.Net.Dir))
	a.Run("announce", harness.ShortName)
	for _, name := range []string{"never", "long", "ifnp", "digest"} {
		k.inPhase(name, "Running")
		k.prints(name, "one")
	}
}

// secondBuild: a new pod by tag gets the new build, one by digest still that which it names.
func (k *kubeletHost) secondBuild(a *harness.Host) {
	a.ImportImage(sleeper(harness.FullName, "two", 2))
	a.Run("announce", harness.ShortName)
	byDigest := k.manifest("digest")
	for _, name := range []string{"never", "digest"} {
		k.removePod(name)
	}
	k.addPod("never", harness.ShortName, "Never")
	k.addManifest("digest", byDigest)
	for name, says := range map[string]string{"never": "two", "digest": "one"} {
		k.inPhase(name, "Running")
		k.prints(name, says)
	}
}

// restart: the kubelet finds its pods again, and starts new ones from what is there.
func (k *kubeletHost) restart() {
	before, err := k.pods()
	if err != nil {
		k.T.Fatal(err)
	}
	k.restartKubelet()
	for name, p := range before {
		// A pod that came again in the file of an earlier one may have had that one's container
		// counted as a restart, until the kubelet removed it.
		if now := k.inPhase(name, "Running"); now.Container != p.Container || now.Restarts > p.Restarts {
			k.T.Errorf("pod %s was %+v before the kubelet's restart and is %+v", name, p, now)
		}
	}
	k.addPod("after", harness.ShortName, "Never")
	k.inPhase("after", "Running")
	k.prints("after", "two")
}

// unfinishedPull: a pull that did not end when the kubelet did blocks its image for Never.
func (k *kubeletHost) unfinishedPull(a *harness.Host) {
	l := harness.Listen(k.Host, silentRegistry)
	k.addPod("slow", "slow:1", "IfNotPresent")
	var note string
	harness.Eventually(k.T, time.Minute, "the kubelet notes that it pulls slow:1", func() error {
		notes, err := filepath.Glob(k.Path(pullingDir + "/sha256-*"))
		if err != nil || len(notes) != 1 {
			return fmt.Errorf("%v, %w", notes, err)
		}
		note = notes[0]
		b, err := os.ReadFile(note)
		if err == nil && !strings.Contains(string(b), `"slow:1"`) {
			err = errors.New(string(b))
		}
		return err
	})
	k.kubelet.Stop(k.T, syscall.SIGKILL)
	if err := os.Remove(k.Path(podDir + "/slow.json")); err != nil {
		k.T.Fatal(err)
	}
	l.Close()
	hourAgo := time.Now().Add(-time.Hour) // seeder takes young notes for pulls under way
	if err := os.Chtimes(note, hourAgo, hourAgo); err != nil {
		k.T.Fatal(err)
	}
	k.startKubelet()
	a.ImportImage(sleeper("docker.io/library/slow:1", "slow", 3))
	fix := "rm " + pullingDir + "/" + filepath.Base(note)
	harness.Eventually(k.T, 30*time.Second, "announce says that slow:1 is blocked", func() error {
		// h2 takes what it has read of the notes for true for 5 s.
		out := a.Run("announce", "slow:1")
		if !strings.Contains(out, "slow:1 is ready on h2, but the kubelet refuses it for imagePullPolicy Never") || !strings.Contains(out, fix+" && systemctl restart kubelet") {
			return fmt.Errorf("no word of %s:\n%s", note, out)
		}
		return nil
	})
	k.addPod("blocked", "slow:1", "Never")
	k.inPhase("blocked", "ErrImageNeverPull")
	k.restartKubelet()
	k.inPhase("blocked", "ErrImageNeverPull") // a restart alone does not help
	k.Sh(fix)
	k.restartKubelet()
	k.inPhase("blocked", "Running")
	k.prints("blocked", "slow")
	harness.Eventually(k.T, 30*time.Second, "h2 says that slow:1 is blocked no more", func() error {
		if out := a.Run("images", "slow:1"); strings.Contains(out, "blocked") {
			return errors.New(out)
		}
		return nil
	})
}

// collection: the kubelet removes what nobody uses, and leaves what seeder brought.
func (k *kubeletHost) collection() {
	const control = "docker.io/library/control:1"
	k.ImportImage(harness.ImageSpec{Ref: control, Says: "control", Payload: 1 << 20, Seed: 4})
	for _, name := range []string{"never", "long", "ifnp", "digest", "always", "after", "blocked"} {
		k.removePod(name) // nothing is in use any more
	}
	k.restartKubelet()
	fetched := k.Metric("seeder_chunk_bytes_total")
	harness.Eventually(k.T, 12*time.Minute, "the kubelet has removed "+control, func() error {
		time.Sleep(time.Second) // it collects once in five minutes
		if img, err := k.ImageStatus(control); err != nil || img != nil {
			return fmt.Errorf("%v, %w", img, err)
		}
		return nil
	})
	for _, ref := range []string{harness.FullName, "docker.io/library/slow:1", pauseRef} {
		if img, err := k.ImageStatus(ref); err != nil || img == nil {
			k.T.Errorf("%s after the collection: %v, %v", ref, img, err)
		}
	}
	if now := k.Metric("seeder_chunk_bytes_total"); now != fetched {
		k.T.Errorf("%.0f bytes were fetched again after the collection", now-fetched)
	}
	k.addPod("late", harness.ShortName, "Never")
	k.inPhase("late", "Running")
	k.prints("late", "two")
}
