package hosts

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

	"seeder/test/harness"
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
	for version := range harness.Containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			n := harness.NewCluster(t, version, 2, "")
			puller := n.AddHost(version)
			puller.StartContainerd()
			img := harness.NewImage(t, harness.ImageSpec{Ref: pulledRef, Says: "hello", Payload: 1 << 20, Gzip: true, Seed: 1})
			criPull(puller, img)
			want := leftOn(puller, img)
			for name, labels := range want.Content {
				maps.DeleteFunc(labels, func(k, _ string) bool { return strings.HasPrefix(k, "containerd.io/distribution.source.") })
				want.Content[name] = labels
			}

			a, b := n.Hosts[0], n.Hosts[1]
			a.Ctr("images", "import", img.OCIArchive(t, n.Dir))
			imported := leftOn(a, img)
			t.Logf("ctr images import alone leaves %q", slices.Sorted(maps.Keys(imported.Images)))
			a.Run("announce", pulledRef)
			for _, h := range []*harness.Host{a, b} {
				got := leftOn(h, img)
				got.unpin(t, h)
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s is not as after a CRI pull (- pull, + seeder):\n%s", h.Name, d)
				}
			}
		})
	}
}

// unpin takes away the pins, which have to be there on the names and in what CRI says.
func (l *left) unpin(t *testing.T, h *harness.Host) {
	t.Helper()
	for name, r := range l.Images {
		if pin := r.Labels["io.cri-containerd.pinned"]; pin != "pinned" && !strings.HasPrefix(name, "sha256:") {
			t.Errorf("%s is not pinned on %s", name, h.Name)
		}
		delete(r.Labels, "io.cri-containerd.pinned")
	}
	for form, s := range l.Status {
		if !s.Pinned {
			t.Errorf("CRI does not show %s as pinned on %s", form, h.Name)
		}
		s.Pinned = false
		l.Status[form] = s
	}
}

// criPull pulls the image as the kubelet does, from a registry on the host.
func criPull(h *harness.Host, img *harness.Image) {
	h.T.Helper()
	srv := &http.Server{Handler: img}
	l := harness.Listen(h, registry)
	go srv.Serve(l) // ends with Close
	h.T.Cleanup(func() { srv.Close() })
	conn, err := h.CRI()
	if err != nil {
		h.T.Fatal(err)
	}
	defer conn.Close()
	_, err = runtime.NewImageServiceClient(conn).PullImage(h.T.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: pulledRef}})
	if err != nil {
		h.T.Fatalf("CRI pull on %s: %v", h.Name, err)
	}
}

// leftOn reads what is on a host of an image.
func leftOn(h *harness.Host, img *harness.Image) left {
	h.T.Helper()
	ctx, cl := h.T.Context(), h.Client()
	out := left{Images: map[string]record{}, Content: map[digest.Digest]map[string]string{}, Snapshots: map[string]snapshot{}, Status: map[string]status{}}
	list, err := cl.ImageService().List(ctx)
	if err != nil {
		h.T.Fatal(err)
	}
	for _, i := range list {
		out.Images[i.Name] = record{i.Target.Digest, i.Target.MediaType, i.Labels}
	}
	for d := range img.Blobs() {
		info, err := cl.ContentStore().Info(ctx, d)
		if err != nil {
			h.T.Errorf("blob %s on %s: %v", d, h.Name, err)
		}
		out.Content[d] = info.Labels
	}
	err = cl.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, s snapshots.Info) error {
		maps.DeleteFunc(s.Labels, func(k, _ string) bool { return strings.HasPrefix(k, "containerd.io/snapshot") })
		out.Snapshots[s.Name] = snapshot{s.Parent, s.Kind, len(s.Labels)}
		return nil
	})
	if err != nil {
		h.T.Fatal(err)
	}
	leases, err := cl.LeasesService().List(ctx)
	if err != nil {
		h.T.Fatal(err)
	}
	out.Leases = len(leases)
	repo, _, _ := strings.Cut(pulledRef, ":latest")
	for _, form := range []string{pulledRef, repo, repo + "@" + digest.FromBytes(img.Manifest).String(), digest.FromBytes(img.Config).String()} {
		out.Status[form] = criStatus(h, form)
	}
	return out
}

func criStatus(h *harness.Host, form string) status {
	h.T.Helper()
	s, err := h.ImageStatus(form)
	if err != nil {
		h.T.Fatalf("ImageStatus of %s on %s: %v", form, h.Name, err)
	}
	if s == nil {
		return status{}
	}
	return status{ID: s.Id, Tags: s.RepoTags, Digests: s.RepoDigests, User: s.Username, Pinned: s.Pinned, HasSize: s.Size > 0, HasImage: true}
}
