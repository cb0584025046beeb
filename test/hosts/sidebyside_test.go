package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/continuity/sysx"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/unpack"
	"seeder/test/harness"
)

// TestSideBySide: layers that are unpacked side by side are those that are unpacked one
// after the other, file by file, on each containerd that can do both, in whatever order
// they arrive. A containerd that cannot is told apart, and the log says why.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	for version := range harness.Containerds {
		t.Run("containerd-"+version, func(t *testing.T) {
			h := harness.NewNetwork(t, "").AddHost(version)
			h.StartContainerd()
			s := &sides{T: t, cl: h.Client(), root: h.Path("/"), containerd: h.Containerd}
			said := &harness.LockedBuffer{}
			choice := unpack.Choice{Log: slog.New(slog.NewTextHandler(said, nil))}
			slots, err := choice.Slots(t.Context(), s.cl.IntrospectionService(), "overlayfs")
			if err != nil {
				t.Fatal(err)
			}
			if version == "1.7" {
				if slots != nil || !strings.Contains(said.String(), "lacks the capability rebase") {
					t.Errorf("slots %v for containerd 1.7, which has no such capability:\n%s", slots, said)
				}
				return
			}
			// One core has no slots; what is tried here does not depend on it.
			if slots == nil && !strings.Contains(said.String(), "one core") {
				t.Fatalf("containerd %s can unpack layers side by side:\n%s", version, said)
			}
			s.slots = unpack.NewSlots(2)
			t.Run("Equal", func(t *testing.T) { s.with(t).equal() })
			t.Run("HardLinkAcross", func(t *testing.T) { s.with(t).hardLinkAcross() })
			t.Run("WrongDiffID", func(t *testing.T) { s.with(t).wrongDiffID() })
			t.Run("SomebodyElse", func(t *testing.T) { s.with(t).somebodyElse() })
			t.Run("Unseen", func(t *testing.T) { s.with(t).unseen() })
			t.Run("Hangs", func(t *testing.T) { s.with(t).hangs() }) // what it leaves goes with its lease
		})
	}
}

// sides compares two ways of unpacking in one containerd.
type sides struct {
	*testing.T
	cl         *client.Client
	root       string
	slots      unpack.Slots
	containerd *harness.Daemon
}

func (s *sides) with(t *testing.T) *sides { return &sides{t, s.cl, s.root, s.slots, s.containerd} }

// entry is a header of a tar, and the file's content.
type entry struct {
	tar.Header
	body string
}

func dir(name string, mode int64, id int) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: id, Gid: 2 * id}}
}

func file(name string, mode int64, id int) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: id, Gid: 2 * id}, body: "content of " + name}
}

func special(name string, kind byte, major int64) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o640, Devmajor: major, Devminor: 3}}
}

func link(name string, kind byte, to string) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o777, Linkname: to}}
}

func xattr(e entry, name, value string) entry {
	e.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
	return e
}

// capNetRaw is security.capability as setcap cap_net_raw=ep writes it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// awkward are layers with what goes wrong where layers do not know each other.
func awkward() [][]entry {
	base := []entry{
		dir("etc/", 0o755, 0), file("etc/passwd", 0o644, 0), file("etc/kept", 0o600, 7),
		xattr(dir("etc/secret/", 0o700, 42), "user.kind", "secret"), file("etc/secret/old", 0o400, 42),
		dir("usr/", 0o755, 0), dir("usr/lib/", 0o2775, 5), link("lib", tar.TypeSymlink, "usr/lib"),
		dir("bin/", 0o755, 0), file("bin/su", 0o4755, 0),
		xattr(file("bin/ping", 0o755, 0), "security.capability", capNetRaw), xattr(file("bin/noted", 0o755, 1), "user.note", "one"), link("bin/other", tar.TypeLink, "bin/noted"),
		dir("tmp/", 0o1777, 0), dir("dev/", 0o755, 0), special("dev/null", tar.TypeChar, 1),
		special("dev/disk", tar.TypeBlock, 7), special("dev/pipe", tar.TypeFifo, 0),
		dir("gone/", 0o750, 3), file("gone/a", 0o644, 3), dir("gone/deep/", 0o711, 4), file("gone/deep/b", 0o644, 4),
		dir("opaque/", 0o755, 8), file("opaque/old", 0o644, 8), dir("opaque/sub/", 0o700, 9), file("opaque/sub/x", 0o644, 9),
		dir("srv/", 0o755, 0), dir("srv/plain/", 0o755, 0), dir("swap/", 0o755, 2), file("swap/in", 0o644, 2), file("swop", 0o644, 2),
	}
	return [][]entry{
		base,
		{ // deletions, directories without content of those below, other modes
			dir("etc/", 0o711, 11), file("etc/.wh.passwd", 0, 0), file(".wh.gone", 0, 0),
			dir("opaque/", 0o710, 12), file("opaque/.wh..wh..opq", 0, 0), file("opaque/new", 0o644, 12),
			file("bin/one", 0o755, 0), link("bin/two", tar.TypeLink, "bin/one"), xattr(file("bin/ping", 0o755, 0), "security.capability", capNetRaw),
		},
		{file("etc/secret/key", 0o400, 42)},         // a directory of somebody else, not listed
		{file("lib/new.so", 0o644, 0)},              // the same behind a symbolic link
		{file("etc/secret/deep/er/key", 0o400, 42)}, // two that are nowhere, in one that is
		{file("srv/plain/page", 0o644, 0)},          // not listed, but as made anyway
		{file("gone/again", 0o644, 1)},              // below a deletion
		{file("swap", 0o644, 6), dir("swop/", 0o2711, 6), file("swop/in", 0o644, 6)},
		{file("etc/secret/.wh.old", 0, 0)},              // a deletion in a directory that is not listed
		{},                                              // nothing at all
		{file("srv/plain/page", 0o644, 0)},              // a blob that the image has twice
		{file("fresh/of/itself", 0o644, 3)},             // nowhere below
		{dir("./", 0o700, 99), file("./top", 0o644, 1)}, // the root itself
	}
}

// again are the layers of awkward that have to be unpacked on top of those below them.
var again = []int{2, 3, 4, 6, 8}

// old is the time of files in layers.
var old = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

// layers puts the layers into containerd's store and returns them with their diff ids.
func (s *sides) layers(ctx context.Context, all [][]entry) []rootfs.Layer {
	s.Helper()
	var out []rootfs.Layer
	for _, entries := range all {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range entries {
			e.Size, e.ModTime, e.Format = int64(len(e.body)), old, tar.FormatPAX
			if err := w.WriteHeader(&e.Header); err != nil {
				s.Fatal(err)
			}
			if _, err := w.Write([]byte(e.body)); err != nil {
				s.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			s.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(buf.Bytes()), Size: int64(buf.Len())}
		if err := content.WriteBlob(ctx, s.cl.ContentStore(), d.Digest.String(), &buf, d); err != nil {
			s.Fatal(err)
		}
		out = append(out, rootfs.Layer{Blob: d, Diff: d})
	}
	return out
}

// stack is one way to unpack, in a namespace of its own, so that the two do not share
// snapshots.
func (s *sides) stack(namespace string, all [][]entry, slots unpack.Slots) (context.Context, *unpack.Stack, *harness.LockedBuffer) {
	s.Helper()
	ctx, release, err := s.cl.WithLease(namespaces.WithNamespace(s.Context(), namespace))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := release(context.WithoutCancel(ctx)); err != nil {
			s.Error(err)
		}
	})
	said := &harness.LockedBuffer{}
	return ctx, &unpack.Stack{Layers: s.layers(ctx, all), Snapshotter: s.cl.SnapshotService("overlayfs"), Differ: s.cl.DiffService(),
		Slots: slots, Root: s.root, Log: slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug}))}, said
}

// unpack unpacks all layers, which arrive in order, and returns what there is of each.
func (s *sides) unpack(ctx context.Context, u *unpack.Stack, order []int) []map[string]string {
	s.Helper()
	at := 0
	next := func(context.Context) (int, error) { at++; return order[at-1], nil }
	var done []int
	if err := u.All(ctx, next, func(_ context.Context, i int) error { done = append(done, i); return nil }); err != nil {
		s.Fatal(err)
	}
	if !slices.IsSorted(done) || len(done) != len(u.Layers) {
		s.Errorf("layers %v are done, want each from the bottom up", done)
	}
	s.nothingActive(ctx, u)
	var out []map[string]string
	for i := range u.Layers {
		out = append(out, s.tree(s.directory(ctx, u, i)))
	}
	return out
}

// nothingActive: no snapshot is left that was begun and not committed.
func (s *sides) nothingActive(ctx context.Context, u *unpack.Stack) {
	s.Helper()
	for _, name := range s.active(ctx, u) {
		s.Errorf("snapshot %s is still there", name)
	}
}

// active are the snapshots that are not committed.
func (s *sides) active(ctx context.Context, u *unpack.Stack) (names []string) {
	s.Helper()
	if err := u.Snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			names = append(names, info.Name)
		}
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	return names
}

// directory is where the files of layer i are.
func (s *sides) directory(ctx context.Context, u *unpack.Stack, i int) string {
	s.Helper()
	key := fmt.Sprintf("look-%d-%d", i, rand.Uint64())
	mounts, err := u.Snapshotter.View(ctx, key, u.Chain(i+1).String())
	if err != nil {
		s.Fatal(err)
	}
	if err := u.Snapshotter.Remove(ctx, key); err != nil {
		s.Fatal(err)
	}
	at := mounts[0].Source
	for _, o := range mounts[0].Options {
		if lowers, ok := strings.CutPrefix(o, "lowerdir="); ok {
			at, _, _ = strings.Cut(lowers, ":")
		}
	}
	return filepath.Join(s.root, at)
}

// tree is everything below root, with all that a file has but the times of what has none
// of its layer.
func (s *sides) tree(root string) map[string]string {
	s.Helper()
	out, first := map[string]string{}, map[uint64]string{}
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%v %d:%d dev %d", info.Mode(), st.Uid, st.Gid, st.Rdev)
		if info.ModTime().Equal(old) {
			line += " old"
		}
		if !d.IsDir() {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" %d links, as %s", st.Nlink, first[st.Ino])
		}
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(b))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + to
		}
		names, err := sysx.LListxattr(path)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, n := range names {
			v, err := sysx.LGetxattr(path, n)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%q", n, v)
		}
		out[name] = line
		return nil
	}); err != nil {
		s.Fatal(err)
	}
	return out
}

// compare expects that both ways made the same of each layer.
func (s *sides) compare(want, got []map[string]string) {
	s.Helper()
	for i := range want {
		for name, line := range want[i] {
			if got[i][name] != line {
				s.Errorf("layer %d, %s:\n one after the other %s\n side by side       %s", i, name, line, got[i][name])
			}
		}
		for name := range got[i] {
			if want[i][name] == "" {
				s.Errorf("layer %d has %s only side by side: %s", i, name, got[i][name])
			}
		}
	}
}

func upTo(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

func (s *sides) equal() {
	all := awkward()
	ctx, u, _ := s.stack("serial", all, nil)
	want := s.unpack(ctx, u, upTo(len(all)))
	for what, line := range map[string]string{ // the comparison sees what it is for
		"1 gone": "Dc", "1 opaque": `trusted.overlay.opaque="y"`, "0 bin/ping": "security.capability", "0 bin/other": "2 links, as bin/noted",
		"2 etc/secret": "drwx------ 42:84", "0 dev/null": "dev 259", "0 bin/su": "urwxr-xr-x",
	} {
		var i int
		var name string
		fmt.Sscan(what, &i, &name)
		if !strings.Contains(want[i][name], line) {
			s.Errorf("layer %d, %s: %q, want %q in it", i, name, want[i][name], line)
		}
	}
	orders := [][]int{upTo(len(all)), nil}
	orders[1] = slices.Clone(orders[0])
	slices.Reverse(orders[1])
	for range 2 {
		orders = append(orders, rand.Perm(len(all)))
	}
	for k, order := range orders {
		ctx, u, said := s.stack(fmt.Sprintf("sides-%d", k), all, s.slots)
		if k == 2 { // the lowest layers are unpacked already
			for i := range 4 {
				if err := u.Apply(ctx, i, false); err != nil {
					s.Fatal(err)
				}
			}
		}
		got := s.unpack(ctx, u, order)
		s.Logf("arrived in order %v", order)
		s.compare(want, got)
		var wanted int
		for _, i := range again {
			if k != 2 || i > 4 { // layer 4 is then the first, on those below it
				wanted++
			}
		}
		if n := strings.Count(said.String(), "unpacked again"); n != wanted {
			s.Errorf("%d layers were unpacked again, want %d:\n%s", n, wanted, said)
		}
	}
}

// hardLinkAcross: a link to a file of a layer below fails alike, and leaves nothing.
func (s *sides) hardLinkAcross() {
	all := [][]entry{{file("a", 0o644, 0)}, {link("b", tar.TypeLink, "a")}, {file("c", 0o644, 0)}}
	var said []string
	for name, slots := range map[string]unpack.Slots{"links-serial": nil, "links-sides": s.slots} {
		ctx, u, _ := s.stack(name, all, slots)
		err := u.All(ctx, unpack.Present(), func(context.Context, int) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), u.Layers[1].Blob.Digest.String()) {
			s.Errorf("%s: a hard link into a layer below: %v", name, err)
		}
		s.nothingActive(ctx, u)
		said = append(said, fmt.Sprint(err))
	}
	s.Log(said)
}

// wrongDiffID: a layer that unpacks to something else than the config says is not
// committed, and neither is any above it.
func (s *sides) wrongDiffID() {
	ctx, u, _ := s.stack("wrong", awkward(), s.slots)
	u.Layers[3].Diff.Digest = digest.FromString("something else")
	err := u.All(ctx, unpack.Present(), func(_ context.Context, i int) error {
		if i >= 3 {
			s.Errorf("layer %d is done", i)
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "the image's config says") {
		s.Errorf("a wrong diff id: %v", err)
	}
	s.nothingActive(ctx, u)
	if _, err := u.Snapshotter.Stat(ctx, u.Chain(4).String()); err == nil {
		s.Error("a layer that is not what the config says was committed")
	}
}

// somebodyElse: layers that CRI, say, unpacks meanwhile are taken as they are.
func (s *sides) somebodyElse() {
	all := awkward()
	ctx, u, _ := s.stack("else-serial", all, nil)
	want := s.unpack(ctx, u, upTo(len(all)))
	ctx, u, _ = s.stack("else-sides", all, s.slots)
	_, other, _ := s.stack("else-sides", all, nil)
	at := -1
	next := func(ctx context.Context) (int, error) {
		if at++; at == 3 {
			for i := range 2 {
				if err := other.Apply(ctx, i, false); err != nil {
					return 0, err
				}
			}
		}
		return at, nil
	}
	if err := u.All(ctx, next, func(context.Context, int) error { return nil }); err != nil {
		s.Fatal(err)
	}
	s.nothingActive(ctx, u)
	var got []map[string]string
	for i := range all {
		got = append(got, s.tree(s.directory(ctx, u, i)))
	}
	s.compare(want, got)
}

// hangs: a containerd that hangs while layers wait for the lowest one does not hold up the
// end of the work for longer than the daemon has to stop.
func (s *sides) hangs() {
	ctx, u, _ := s.stack("hangs", awkward(), s.slots)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := 0
	var goOn func()
	err := u.All(ctx, func(ctx context.Context) (int, error) {
		if at++; at < 4 { // the lowest comes never
			return at, nil
		}
		harness.Eventually(s.T, 10*time.Second, "layers are unpacked", func() error {
			if n := len(s.active(ctx, u)); n < at-1 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		goOn = hang(s.containerd, s.T)
		cancel()
		time.AfterFunc(8*time.Second, goOn) // the daemon has nine
		return 0, ctx.Err()
	}, func(context.Context, int) error { return nil })
	state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.containerd.PID))
	if !errors.Is(err, context.Canceled) || !bytes.Contains(state, []byte(") T ")) {
		s.Errorf("it ended with %v when containerd went on again (%s)", err, state)
	}
	goOn()
}

// unseen: where this process does not see the directories, each layer is unpacked on top
// of those below it.
func (s *sides) unseen() {
	all := awkward()
	ctx, u, _ := s.stack("unseen-serial", all, nil)
	want := s.unpack(ctx, u, upTo(len(all)))
	ctx, u, said := s.stack("unseen-sides", all, s.slots)
	u.Root = s.TempDir()
	s.compare(want, s.unpack(ctx, u, upTo(len(all))))
	if n := strings.Count(said.String(), "unpacked again"); n != len(all)-1 {
		s.Errorf("%d layers were unpacked again, want %d", n, len(all)-1)
	}
}
