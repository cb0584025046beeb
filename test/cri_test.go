package test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// registry is where the image of the comparison is pulled from; each host that
// pulls has one of its own there.
const (
	registry  = "127.0.0.1:5000"
	pulledRef = registry + "/library/k3s-dashboard:latest"
)

// left is what an image left in a containerd.
type left struct {
	Images    map[string]record
	Content   map[digest.Digest]map[string]string // labels
	Snapshots map[string]snapshot                 // by name
	Status    map[string]status                   // CRI's answer by form of the reference
	Leases    int
}

type record struct {
	Target    digest.Digest
	MediaType string
	Labels    map[string]string
}

type snapshot struct {
	Parent string
	Kind   snapshots.Kind
	Labels int // but for what CRI's unpacker says to the snapshotter while it unpacks
}

type status struct {
	ID                string
	Tags, Digests     []string
	User              string
	Pinned            bool
	HasSize, HasImage bool
}

// TestImportEqualsPull: what seeder leaves on a host, on the one that announces
// and on the one that receives, is what a CRI pull of the same image leaves, on
// every containerd. What differs on purpose: the pin, and the label that says
// which registry a blob came from.
func TestImportEqualsPull(t *testing.T) {
	for version := range containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			n := cluster(t, version, 2, "")
			puller := n.addHost(version)
			puller.startContainerd()
			img := newImage(t, imageSpec{ref: pulledRef, says: "hello", payload: 1 << 20, gzip: true, seed: 1})
			puller.criPull(img)
			want := puller.left(img)
			for name, labels := range want.Content {
				maps.DeleteFunc(labels, func(k, _ string) bool { return strings.HasPrefix(k, "containerd.io/distribution.source.") })
				want.Content[name] = labels
			}

			a, b := n.hosts[0], n.hosts[1]
			a.ctr("images", "import", img.ociArchive(t, n.dir))
			imported := a.left(img)
			t.Logf("ctr images import alone leaves %q", slices.Sorted(maps.Keys(imported.Images)))
			a.run("announce", pulledRef)
			for _, h := range []*host{a, b} {
				got := h.left(img)
				got.unpin(t, h)
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s is not as after a CRI pull (- pull, + seeder):\n%s", h.name, d)
				}
			}
		})
	}
}

// unpin takes away the pins, which have to be there on the names and in what CRI says.
func (l *left) unpin(t *testing.T, h *host) {
	t.Helper()
	for name, r := range l.Images {
		if pin := r.Labels["io.cri-containerd.pinned"]; pin != "pinned" && !strings.HasPrefix(name, "sha256:") {
			t.Errorf("%s is not pinned on %s", name, h.name)
		}
		delete(r.Labels, "io.cri-containerd.pinned")
	}
	for form, s := range l.Status {
		if !s.Pinned {
			t.Errorf("CRI does not show %s as pinned on %s", form, h.name)
		}
		s.Pinned = false
		l.Status[form] = s
	}
}

// criPull pulls the image as the kubelet does, from a registry on the host.
func (h *host) criPull(img *image) {
	h.t.Helper()
	srv := &http.Server{Handler: img}
	l := h.listen(registry)
	go srv.Serve(l) // ends with Close
	h.t.Cleanup(func() { srv.Close() })
	conn, err := h.cri()
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	_, err = runtime.NewImageServiceClient(conn).PullImage(h.t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: pulledRef}})
	if err != nil {
		h.t.Fatalf("CRI pull on %s: %v", h.name, err)
	}
}

// left reads what is on a host of an image.
func (h *host) left(img *image) left {
	h.t.Helper()
	ctx, cl := h.t.Context(), h.client()
	out := left{Images: map[string]record{}, Content: map[digest.Digest]map[string]string{}, Snapshots: map[string]snapshot{}, Status: map[string]status{}}
	list, err := cl.ImageService().List(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, i := range list {
		out.Images[i.Name] = record{i.Target.Digest, i.Target.MediaType, i.Labels}
	}
	for d := range img.blobs() {
		info, err := cl.ContentStore().Info(ctx, d)
		if err != nil {
			h.t.Errorf("blob %s on %s: %v", d, h.name, err)
		}
		out.Content[d] = info.Labels
	}
	err = cl.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, s snapshots.Info) error {
		maps.DeleteFunc(s.Labels, func(k, _ string) bool { return strings.HasPrefix(k, "containerd.io/snapshot") })
		out.Snapshots[s.Name] = snapshot{s.Parent, s.Kind, len(s.Labels)}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	leases, err := cl.LeasesService().List(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	out.Leases = len(leases)
	repo, _, _ := strings.Cut(pulledRef, ":latest")
	for _, form := range []string{pulledRef, repo, repo + "@" + digest.FromBytes(img.manifest).String(), digest.FromBytes(img.config).String()} {
		out.Status[form] = h.criStatus(form)
	}
	return out
}

func (h *host) criStatus(form string) status {
	h.t.Helper()
	s, err := h.imageStatus(form)
	if err != nil {
		h.t.Fatalf("ImageStatus of %s on %s: %v", form, h.name, err)
	}
	if s == nil {
		return status{}
	}
	return status{ID: s.Id, Tags: s.RepoTags, Digests: s.RepoDigests, User: s.Username, Pinned: s.Pinned, HasSize: s.Size > 0, HasImage: true}
}
