package hosts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"seeder/p2p/report"
	"seeder/test/harness"
)

const mirror = "127.0.0.1:7953"

// TestRegistry: with seeder's registry as the mirror of every name, a pull as the kubelet
// does it for the policy Always gets the announced image from this host and asks nobody
// else; one of an image that is on its way joins the fetch and reads the layers as they come;
// a name that nobody has announced is refused at once and comes from its own registry.
func TestRegistry(t *testing.T) {
	n := harness.NewNetwork(t, "")
	for i := range 2 {
		h := n.AddHost("2.3")
		h.StartContainerdWith("[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n")
		env := []string{"SEEDER_REGISTRY_BIND=" + mirror}
		if i == 1 {
			env = append(env, "SEEDER_TRANSFER_DOWNLOAD_LIMIT=2MiB")
		}
		h.StartSeeder(env...)
		h.Write("/etc/seeder/seeder.yaml", "registry: {bind: \""+mirror+"\"}\n", 0o600)
		h.Run("registry", "setup", "--for", "containerd", "--write")
	}
	a, b := n.Hosts[0], n.Hosts[1]
	a.AwaitMembers(2)

	// The registry of both hosts' names has another image under each of them.
	older := harness.NewImage(t, harness.ImageSpec{Ref: pulledRef, Says: "older", Payload: 1 << 20, Gzip: true, Seed: 2})
	var asked [2]atomic.Int64
	for i, h := range n.Hosts {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked[i].Add(1)
			older.ServeHTTP(w, r)
		})}
		go srv.Serve(harness.Listen(h, registry)) // ends with Close
		t.Cleanup(func() { srv.Close() })
	}

	for i, ref := range []string{pulledRef, harness.ShortName} {
		a.ImportImage(harness.ImageSpec{Ref: ref, Says: "announced", Random: 10 << 20, Seed: uint64(10 + i)})
		announced := make(chan error, 1)
		go func() { announced <- a.Try(nil, "announce", ref, "--timeout", "2m") }()
		harness.Eventually(t, 20*time.Second, "the second host fetches "+ref, func() error {
			states, err := b.States(ref)
			if err == nil && states[b.Name].State != report.Fetching {
				err = fmt.Errorf("it is %s", states[b.Name].State)
			}
			return err
		})
		if i == 0 {
			streams(t, b, ref)
		}
		pullAlways(t, b, ref) // joins the fetch
		if got, err := b.ImageStatus(ref); err != nil || got == nil {
			t.Errorf("after the pull on %s CRI has no %s: %v, %v", b.Name, ref, got, err)
		}
		if err := <-announced; err != nil {
			t.Fatal(err)
		}
		row, err := a.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range n.Hosts {
			pullAlways(t, h, ref)
			if got := h.Target(row.Reference); got != digest.Digest(row.Digest) {
				t.Errorf("after the pull %s is %s on %s, announced is %s", ref, got, h.Name, row.Digest)
			}
		}
	}
	for i, h := range n.Hosts {
		if got := asked[i].Load(); got != 0 {
			t.Errorf("%d requests went to the real registry of %s", got, h.Name)
		}
	}

	other := registry + "/library/other:v1"
	pullAlways(t, b, other)
	if got := b.Target(other); got != digest.FromBytes(older.Manifest) || asked[1].Load() == 0 {
		t.Errorf("%s is %s, of the real registry %s (%d requests)", other, got, digest.FromBytes(older.Manifest), asked[1].Load())
	}
	refusals(t, b)
}

// pullAlways is what the kubelet does for a pod with the policy Always.
func pullAlways(t *testing.T, h *harness.Host, ref string) {
	t.Helper()
	conn, err := h.CRI()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = runtime.NewImageServiceClient(conn).PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("CRI pull of %s on %s: %v\n%s", ref, h.Name, err, h.Seeder.Log.Tail(20))
	}
}

// registryClient asks the registry of a host, with what setup wrote for containerd as
// Authorization.
func registryClient(t *testing.T, h *harness.Host) (client *http.Client, auth string) {
	t.Helper()
	client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return harness.Dial(h, mirror) }}}
	_, auth, ok := strings.Cut(h.Sh("cat /etc/containerd/certs.d/_default/hosts.toml"), "Authorization = \"")
	auth, _, _ = strings.Cut(auth, "\"")
	if !ok || !strings.HasPrefix(auth, "Basic ") {
		t.Fatalf("no credentials in hosts.toml: %q", auth)
	}
	return client, auth
}

// streams: of an image that is being fetched the manifest is there, and a layer gives bytes
// before all of it has arrived.
func streams(t *testing.T, h *harness.Host, ref string) {
	t.Helper()
	client, auth := registryClient(t, h)
	name, tag, _ := strings.Cut(strings.TrimPrefix(ref, registry+"/"), ":")
	get := func(path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+mirror+"/v2/"+name+path+"?ns="+registry, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", auth)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %s", req.URL, resp.Status)
		}
		return resp
	}
	var m ocispec.Manifest
	resp := get("/manifests/" + tag)
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(&m), resp.Body.Close()); err != nil || len(m.Layers) == 0 {
		t.Fatalf("%d layers, %v", len(m.Layers), err)
	}
	layer := slices.MaxFunc(m.Layers, func(a, b ocispec.Descriptor) int { return cmp.Compare(a.Size, b.Size) })
	resp = get("/blobs/" + layer.Digest.String())
	defer resp.Body.Close()
	verifier := layer.Digest.Verifier()
	if _, err := io.CopyN(verifier, resp.Body, 64<<10); err != nil {
		t.Fatal(err)
	}
	if s, err := h.States(ref); err != nil || s[h.Name].State != report.Fetching {
		t.Errorf("when the first bytes of the layer had come, %s was %s on %s, %v; want fetching", ref, s[h.Name].State, h.Name, err)
	}
	if n, err := io.Copy(verifier, resp.Body); err != nil || !verifier.Verified() {
		t.Errorf("layer %s: %d of %d bytes, %v", layer.Digest, n+64<<10, layer.Size, err)
	}
}

// refusals: 404 for what nobody announced, sooner than anybody could have been asked; 401
// for everything without the credentials.
func refusals(t *testing.T, h *harness.Host) {
	t.Helper()
	client, header := registryClient(t, h)
	for _, c := range []struct {
		path, auth string
		status     int
	}{
		{"/v2/library/k3s-dashboard/manifests/latest?ns=docker.io", header, 200},
		{"/v2/library/unknown/manifests/latest?ns=docker.io", header, 404},
		{"/v2/library/k3s-dashboard/manifests/v9?ns=docker.io", header, 404},
		{"/v2/_catalog", header, 404},
		{"/v2/library/k3s-dashboard/manifests/latest?ns=docker.io", "", 401},
		{"/v2/library/k3s-dashboard/manifests/latest?ns=docker.io", "Basic c2VlZGVyOng=", 401},
		{"/v2/", "", 401},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+mirror+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.auth != "" {
			req.Header.Set("Authorization", c.auth)
		}
		begun := time.Now()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		took := time.Since(begun)
		t.Logf("%s: %s after %s", c.path, resp.Status, took)
		if resp.StatusCode != c.status || took > 5*time.Second {
			t.Errorf("%s with %q: %s after %s, want %d at once", c.path, c.auth, resp.Status, took, c.status)
		}
	}
}
