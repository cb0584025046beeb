package ctrd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"seeder/store"
	"seeder/store/ctrd"
)

var errInjected = errors.New("this call fails")

// faults fails one call of all those that are made.
type faults struct {
	mu    sync.Mutex
	calls []string
	at    int // the call that fails, from 1 on; 0: none
}

func (f *faults) call(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if len(f.calls) == f.at {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

type faultyImages struct {
	images.Store
	f *faults
}

func (s faultyImages) Get(ctx context.Context, name string) (images.Image, error) {
	if err := s.f.call("images.Get"); err != nil {
		return images.Image{}, err
	}
	return s.Store.Get(ctx, name)
}

func (s faultyImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	if err := s.f.call("images.List"); err != nil {
		return nil, err
	}
	return s.Store.List(ctx, filters...)
}

func (s faultyImages) Create(ctx context.Context, img images.Image) (images.Image, error) {
	if err := s.f.call("images.Create " + img.Name); err != nil {
		return images.Image{}, err
	}
	return s.Store.Create(ctx, img)
}

func (s faultyImages) Update(ctx context.Context, img images.Image, paths ...string) (images.Image, error) {
	if err := s.f.call("images.Update " + img.Name); err != nil {
		return images.Image{}, err
	}
	return s.Store.Update(ctx, img, paths...)
}

func (s faultyImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	if err := s.f.call("images.Delete " + name); err != nil {
		return err
	}
	return s.Store.Delete(ctx, name, opts...)
}

type faultyContent struct {
	content.Store
	f *faults
}

func (s faultyContent) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if err := s.f.call("content.Info"); err != nil {
		return content.Info{}, err
	}
	return s.Store.Info(ctx, d)
}

func (s faultyContent) Update(ctx context.Context, info content.Info, paths ...string) (content.Info, error) {
	if err := s.f.call("content.Update"); err != nil {
		return content.Info{}, err
	}
	return s.Store.Update(ctx, info, paths...)
}

func (s faultyContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if err := s.f.call("content.Writer"); err != nil {
		return nil, err
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return faultyWriter{w, s.f}, nil
}

type faultyWriter struct {
	content.Writer
	f *faults
}

func (w faultyWriter) Write(p []byte) (int, error) {
	if err := w.f.call("writer.Write"); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

func (w faultyWriter) Commit(ctx context.Context, size int64, d digest.Digest, opts ...content.Opt) error {
	if err := w.f.call("writer.Commit"); err != nil {
		return err
	}
	return w.Writer.Commit(ctx, size, d, opts...)
}

type faultyLeases struct {
	leases.Manager
	f *faults
}

func (m faultyLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	if err := m.f.call("leases.Create"); err != nil {
		return leases.Lease{}, err
	}
	return m.Manager.Create(ctx, opts...)
}

func (m faultyLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if err := m.f.call("leases.Delete"); err != nil {
		return err
	}
	return m.Manager.Delete(ctx, l, opts...)
}

// faulty is the embedded store behind services that fail.
func faulty(t *testing.T, f *faults) *ctrd.Containerd {
	t.Helper()
	c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: t.TempDir(), Pin: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Behind(func(db *metadata.DB) *client.Client {
		cl, err := client.New("", client.WithServices(
			client.WithContentStore(faultyContent{db.ContentStore(), f}),
			client.WithImageStore(faultyImages{metadata.NewImageStore(db), f}),
			client.WithLeasesService(faultyLeases{metadata.NewLeaseManager(db), f}),
		))
		if err != nil {
			t.Fatal(err)
		}
		return cl
	})
	return c
}

// importAll imports an archive as package store does.
func importAll(t *testing.T, c *ctrd.Containerd, archive []byte) (store.Imported, error) {
	return store.Archives{Containerd: c}.Import(t.Context(), bytes.NewReader(archive), "")
}

// state is all that an import may leave: names with targets and labels, leases.
func state(t *testing.T, c *ctrd.Containerd) string {
	t.Helper()
	ctx, cl := namespaces.WithNamespace(t.Context(), "k8s.io"), c.Client()
	all, err := cl.ImageService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	held, err := cl.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, i := range all {
		fmt.Fprintln(&out, i.Name, i.Target.Digest, i.Labels)
	}
	for _, l := range held {
		fmt.Fprintln(&out, "lease", l.ID)
	}
	return out.String()
}

// importFaults imports an archive again and again, each time with another call of
// containerd that fails. Where the import fails it leaves all as it was before.
func importFaults(t *testing.T, before, archive []byte) {
	t.Helper()
	f := &faults{}
	for at := 1; ; at++ {
		f.at, f.calls = 0, nil
		c := faulty(t, f)
		if before != nil {
			if _, err := importAll(t, c, before); err != nil {
				t.Fatal(err)
			}
		}
		was := state(t, c)
		f.at, f.calls = at, nil
		_, err := importAll(t, c, archive)
		calls := len(f.calls)
		f.at = 0
		if calls < at {
			if at < 30 {
				t.Errorf("only %d calls were made to fail", at)
			}
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d calls, each was made to fail", calls)
			return
		}
		if err == nil {
			continue // it did without the call
		}
		if now := state(t, c); now != was {
			t.Errorf("call %d (%s) fails with %v; it leaves\n%swhere was\n%s", at, f.calls[at-1], err, now, was)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// twoImages is a docker-archive of two images, one of them with two tags, whose content
// is another one for each build.
func twoImages(t *testing.T, build string) []byte {
	t.Helper()
	files := map[string]string{}
	var entries []string
	for _, name := range []string{"one", "two"} {
		layer := tarOf(t, map[string]string{name: build})
		files[name+".tar"] = layer
		files[name+".json"] = fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromString(layer))
		entries = append(entries, fmt.Sprintf(`{"Config":"%[1]s.json","RepoTags":["%[1]s:v1","%[1]s:v2"],"Layers":["%[1]s.tar"]}`, name))
	}
	files["manifest.json"] = "[" + entries[0] + "," + entries[1] + "]"
	return []byte(tarOf(t, files))
}

func tarOf(t *testing.T, files map[string]string) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// TestImportFailsWithoutTrace: whichever call of containerd fails while an archive is
// imported, nothing is named, pinned or leased afterwards that was not before.
func TestImportFailsWithoutTrace(t *testing.T) {
	t.Parallel()
	importFaults(t, nil, twoImages(t, "a"))
}

// TestImportFailsAndKeepsTheBuildBefore: the names stand for what they stood for.
func TestImportFailsAndKeepsTheBuildBefore(t *testing.T) {
	t.Parallel()
	importFaults(t, twoImages(t, "a"), twoImages(t, "b"))
}

// TestTakeBackWithoutTrace: where the announcement fails after a good import, its names,
// pins and leases are what they were before, with a build before and without.
func TestTakeBackWithoutTrace(t *testing.T) {
	t.Parallel()
	for name, before := range map[string][]byte{"nothing before": nil, "a build before": twoImages(t, "a")} {
		c := faulty(t, &faults{})
		if before != nil {
			if _, err := importAll(t, c, before); err != nil {
				t.Fatal(err)
			}
		}
		was := state(t, c)
		got, err := importAll(t, c, twoImages(t, "b"))
		if err != nil || len(got.Names) != 4 {
			t.Fatalf("%s: %v %v", name, got.Names, err)
		}
		if state(t, c) == was {
			t.Errorf("%s: the import changed nothing", name)
		}
		for _, ref := range got.Names {
			if err := got.TakeBack(t.Context(), ref); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if now := state(t, c); now != was {
			t.Errorf("%s: taking it back leaves\n%swhere was\n%s", name, now, was)
		}
	}
}
