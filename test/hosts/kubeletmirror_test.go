package hosts

import (
	"net/http"
	"strings"
	"sync/atomic"

	"seeder/test/harness"
)

const dockerHub = "/etc/containerd-certs.d/docker.io/hosts.toml"

// mirrored puts seeder's registry in front of Docker Hub, as an operator does: what setup
// prints goes into the file that is there.
func (k *kubeletHost) mirrored() {
	k.T.Helper()
	k.Write("/etc/seeder/seeder.yaml", "registry: {bind: \""+mirror+"\"}\n", 0o600)
	k.Sh(harness.SeederBin(k.T) + " registry setup --for containerd >>" + dockerHub)
}

// always: a pod that names no policy, which means Always for latest, waits for an image: what
// nobody has announced is asked of Docker Hub, as without seeder. It starts once the image is
// announced. From then on nobody asks Docker Hub, also not for the next build.
//
// The image is no other pod's: what a kubelet has pulled it gives to pods with Never under
// the name alone by which it has pulled it. Doctor says so, and what it says to do helps.
func (k *kubeletHost) always(a *harness.Host) {
	var asked atomic.Int64
	hub := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.NotFound(w, r)
	})}
	go hub.Serve(harness.Listen(k.Host, silentRegistry)) // ends with Close
	defer hub.Close()
	k.addPod("always", "always:latest", "")
	k.inPhase("always", "ErrImagePull", "ImagePullBackOff")
	if asked.Load() == 0 {
		k.T.Error("nobody asked Docker Hub for an image that nobody has announced")
	}
	a.ImportImage(sleeper("docker.io/library/always:latest", "first", 5))
	a.Run("announce", "always:latest")
	k.inPhase("always", "Running")
	k.prints("always", "first")
	asked.Store(0)
	k.removePod("always")
	a.ImportImage(sleeper("docker.io/library/always:latest", "second", 6))
	a.Run("announce", "always:latest")
	k.addPod("always", "always:latest", "Always")
	k.inPhase("always", "Running")
	k.prints("always", "second")
	if n := asked.Load(); n != 0 {
		k.T.Errorf("%d requests went to Docker Hub for an announced image", n)
	}
	k.otherName("docker.io/library/always:latest", "always:latest")
}

// otherName: a pod with Never that writes another name than that by which the kubelet has
// pulled the image.
func (k *kubeletHost) otherName(image, pulledAs string) {
	k.T.Helper()
	// A collection removes the records of images that are in use or pinned, too; this kubelet
	// shall make none.
	const config = "/etc/kubelet/config.yaml"
	k.Sh("sed -i 's/^imageGCHighThresholdPercent: 1$/&00/' " + config)
	k.restartKubelet()
	k.addPod("pulls", pulledAs, "Always")
	k.inPhase("pulls", "Running")
	k.addPod("other", image, "Never")
	k.inPhase("other", "ErrImageNeverPull")
	env := waitingPods(k.Host, image, pulledAs)
	fix := doctor(k.Host, env...).fixOf(k.T, "web/p0", "is announced and ready there, but the kubelet has pulled that image itself")
	rename, forget, _ := strings.Cut(strings.Trim(fix, "`"), " in the pod's template, as it was pulled; or `")
	forget, _, _ = strings.Cut(forget, " && systemctl restart ")
	if rename != "write it as "+pulledAs || !strings.HasPrefix(forget, "rm "+pulledDir+"/sha256-") {
		k.T.Fatalf("doctor says to do %q", fix)
	}
	k.addPod("renamed", pulledAs, "Never")
	k.inPhase("renamed", "Running")
	k.restartKubelet()
	k.inPhase("other", "ErrImageNeverPull") // a restart alone does not help
	k.Sh(forget)
	k.restartKubelet()
	k.inPhase("other", "Running")
	doctor(k.Host, env...).fixOf(k.T, "web/p0", "is announced, and ready there")
	for _, name := range []string{"pulls", "other", "renamed"} {
		k.removePod(name)
	}
	k.Sh("rm -r /etc/standin /etc/rancher; sed -i 's/^imageGCHighThresholdPercent: 100$/imageGCHighThresholdPercent: 1/' " + config)
	k.restartKubelet()
}
