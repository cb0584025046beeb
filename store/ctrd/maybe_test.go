package ctrd

import (
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/filters"

	"seeder/store/imageref"
)

// TestMaybe: whatever name stands for a reference passes the filter of that, and names of
// other repositories do not.
func TestMaybe(t *testing.T) {
	t.Parallel()
	const dgst = "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	passes := func(ref, name string) bool {
		t.Helper()
		f, err := filters.Parse(maybe(ref))
		if err != nil {
			t.Fatalf("%s: %v", maybe(ref), err)
		}
		return f.Match(adapt(images.Image{Name: name}))
	}
	for _, name := range []string{
		"app", "app:v1", "library/app:v1", "index.docker.io/app:v1", "docker.io/library/app", "app:v1" + dgst, "app" + dgst,
		"ghcr.io/a.b/c-d__e.f:1.2", "localhost:5000/x/y/z:latest", "Registry.Example/team/app:V1", "[::1]:5000/a:b",
	} {
		ref := imageref.ForCRI(name)
		if ref == "" {
			t.Fatalf("invalid reference %s", name)
		}
		if !passes(ref, name) || !passes(ref, ref) {
			t.Errorf("%s does not pass the filter of %s: %s", name, ref, maybe(ref))
		}
		if passes(ref, "docker.io/library/other:v1") {
			t.Errorf("any name passes the filter of %s: %s", ref, maybe(ref))
		}
	}
	if passes("docker.io/library/a.b:v1", "docker.io/library/acb:v1") {
		t.Error("a dot passes for any letter")
	}
	if id := "sha256:e3b0"; !passes(id, id) || passes(id, "docker.io/library/app:v1") {
		t.Error("what is not a reference is looked up by another name")
	}
}

func adapt(img images.Image) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 1 && path[0] == "name" {
			return img.Name, true
		}
		return "", false
	})
}
