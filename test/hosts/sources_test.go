package hosts

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/test/harness"
)

// TestFromDockerAndPodman: right after a build an announcement is all it takes. Of
// two builds the newer one is meant, and it is said which; --from decides.
func TestFromDockerAndPodman(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"podman", "docker"} {
		t.Run(kind, func(t *testing.T) {
			n := harness.NewCluster(t, harness.Newest, 2, "")
			a := n.Hosts[0]
			e := map[string]func() harness.Engine{"podman": func() harness.Engine { return harness.Podman(a) }, "docker": func() harness.Engine { return harness.Docker(a) }}[kind]()
			all := func(says string) {
				t.Helper()
				for _, h := range n.Hosts {
					becomes(h, says)
				}
			}
			err := a.Try(nil, "announce", harness.ShortName)
			if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "has no image "+harness.FullName) || !strings.Contains(err.Error(), kind+" (unix:///run/") {
				t.Errorf("an image that nobody has: %v", err)
			}
			e.Build(e.BuildContext("one"), harness.ShortName)
			out := a.Run("announce", harness.ShortName)
			if want := harness.ShortName + " comes from " + kind + ": containerd does not have it"; !strings.Contains(out, want) {
				t.Errorf("printed %q, want %q", out, want)
			}
			all("one")
			if out := a.Run("announce", harness.ShortName); strings.Contains(out, "comes from") || !strings.Contains(out, "version 1") {
				t.Errorf("the same build once more:\n%s", out)
			}
			e.Build(e.BuildContext("two"), harness.ShortName)
			out = a.Run("announce", harness.ShortName)
			if !strings.Contains(out, "comes from "+kind+": its build ") || !strings.Contains(out, "is newer than containerd's") {
				t.Errorf("a newer build:\n%s", out)
			}
			all("two")
			// containerd's becomes the newer one.
			e.Build(e.BuildContext("three"), harness.ShortName)
			a.Run("announce", harness.ShortName)
			all("three")
			a.Run("announce", "--rollback", harness.ShortName)
			all("two")
			out = a.Run("announce", harness.ShortName, "--from", "containerd")
			if strings.Contains(out, "comes from") {
				t.Errorf("--from containerd:\n%s", out)
			}
			all("two")
			a.Run("announce", harness.ShortName, "--from", kind)
			all("three")
			if list := a.Ctr("leases", "ls", "-q"); strings.Contains(list, "archive") {
				t.Errorf("a lease of the import is left: %s", list)
			}

			// An older build in the engine is not taken by itself.
			dir := e.BuildContext("four")
			e.Build(dir, "other:v1")
			a.Run("announce", "other:v1")
			save := ctrExport(a, "docker.io/library/other:v1")
			e.Build(e.BuildContext("five"), "other:v1")
			a.Run("announce", "other:v1")
			if kind == "podman" {
				// The first build again, in the engine alone.
				a.Sh(harness.PodmanArgs + " rmi -f localhost/other:v1 && " + harness.PodmanArgs + " load -q -i " + save)
				out = a.Run("announce", "other:v1")
				if !strings.Contains(out, "other:v1 comes from containerd: its build ") || !strings.Contains(out, "is not older than podman's") {
					t.Errorf("an older build in Podman:\n%s", out)
				}
			}
			// As a stream, without a file.
			importStream(a, t, e, harness.ShortName)
			all("three")
		})
	}
}

// ctrExport writes what containerd has under ref to a file.
func ctrExport(h *harness.Host, ref string) string {
	h.T.Helper()
	file := filepath.Join(h.Net.Dir, "export.tar")
	h.Ctr("images", "export", file, ref)
	return file
}

// importStream pipes docker save into announce --from -.
func importStream(h *harness.Host, t *testing.T, e harness.Engine, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	save := harness.PodmanArgs + " save localhost/" + ref
	if e.Kind == "docker" {
		bin, err := filepath.Abs("../../bin/docker/usr/bin/docker")
		if err != nil {
			t.Fatal(err)
		}
		save = bin + " save " + ref
	}
	out := harness.Run(t, h.In(ctx, "sh", "-c", save+" | gzip | "+harness.SeederBin(t)+" announce "+ref+" --from -"))
	if !strings.Contains(out, "is ready on 2 of 2 nodes") {
		t.Errorf("announce --from - printed:\n%s", out)
	}
}

// TestAnnounceArchives: all images of an archive are announced by one command.
func TestAnnounceArchives(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 2, "")
	a, b := n.Hosts[0], n.Hosts[1]
	var imgs []*harness.Image
	for i := range 3 {
		imgs = append(imgs, harness.NewImage(t, harness.ImageSpec{Ref: fmt.Sprintf("docker.io/library/app%d:v1", i), Says: "hello", Payload: 1 << 20, Seed: uint64(i)}))
	}
	out := a.Run("announce", "--from", harness.DockerArchive(t, n.Dir, imgs...))
	for _, img := range imgs {
		if !strings.Contains(out, strings.TrimPrefix(img.Ref, "docker.io/library/")+": version 1 is ready on 2 of 2 nodes") {
			t.Errorf("printed:\n%s", out)
		}
		if got := b.RunContainer(img.Ref); got != "hello" {
			t.Errorf("a container from %s prints %q", img.Ref, got)
		}
	}
	// One of them cannot be announced: the others are.
	whole := imgs[0].OCILayout(t)
	delete(whole, "blobs/sha256/"+digest.FromBytes(imgs[0].Layers[1]).Encoded())
	a.Run("withdraw", "--purge", "app0:v1")
	purged(b, "docker.io/library/app0:v1")
	err := a.Try(nil, "announce", "--from", harness.WriteFile(t, n.Dir, "torn-*.tar", harness.TarOf(t, whole)))
	if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "the archive is incomplete: layer sha256:"+digest.FromBytes(imgs[0].Layers[1]).Encoded()) {
		t.Errorf("an archive without a layer: %v", err)
	}
	if got := a.Target("docker.io/library/app0:v1"); got != "" {
		t.Errorf("it was named all the same: %s", got)
	}
	if row, err := a.Image("app0:v1"); err != nil || row.State != "withdrawn" {
		t.Errorf("it was announced all the same: %+v %v", row, err)
	}
	wantLeases(a)
}
