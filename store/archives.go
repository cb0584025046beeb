package store

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"seeder/internal/wait"
	"seeder/store/archive"
	"seeder/store/artifact"
	"seeder/store/ctrd"
	"seeder/store/imageref"
)

// Archives imports image archives into containerd.
type Archives struct {
	Containerd *ctrd.Containerd
	// Room is asked while an archive is written; its error ends that. Nil: there is room.
	Room func(context.Context) error
}

// Imported is what an archive brought.
type Imported struct {
	Names   []string                 // of the images that are named now, sorted
	Targets map[string]digest.Digest // what the names stand for now: for Prepare, as Settled
	LeftOut []string                 // what is said of images without a name, and of artifacts

	c      *ctrd.Containerd
	before map[string]ctrd.Before // by name
}

// TakeBack makes the image records of name what they were before the import: for what
// cannot be announced. It is idempotent, and not safe for concurrent use.
// Records that another name of the archive needs, too, stay.
func (i Imported) TakeBack(ctx context.Context, name string) error {
	if len(i.before[name]) == 0 {
		return nil
	}
	var others []ctrd.Before
	for other, records := range i.before {
		if other != name {
			others = append(others, records)
		}
	}
	if err := i.c.Images.Restore(ctx, i.before[name].Without(others...)); err != nil {
		return err
	}
	delete(i.before, name)
	return nil
}

// Import reads an archive and names what it brought: every image with a name in it, or
// with ref only the one of that name; see archive.Read. Where anything fails nothing is
// named, pinned or leased, and what was written is left to garbage collection.
func (a Archives) Import(ctx context.Context, r io.Reader, ref string) (out Imported, err error) {
	name := forArchive + rand.Text()
	lctx, release, err := a.Containerd.Leases.Take(ctx, name)
	if err != nil {
		return Imported{}, errors.Join(err, a.dropLost(ctx, name)) // it may have been made all the same
	}
	out = Imported{c: a.Containerd, Targets: map[string]digest.Digest{}, before: map[string]ctrd.Before{}}
	err = a.read(lctx, r, ref, &out)
	err = errors.Join(err, release(ctx))
	if err == nil {
		return out, nil
	}
	undo, cancel := wait.Outlive(ctx, ctrd.ReleaseGrace)
	defer cancel()
	for _, name := range slices.Sorted(maps.Keys(out.before)) {
		err = errors.Join(err, out.TakeBack(undo, name))
	}
	return Imported{}, errors.Join(err, a.Containerd.Leases.Drop(undo, name), a.Containerd.Conn.Collect(undo))
}

// dropLost drops a lease of which it is not known whether it was made.
func (a Archives) dropLost(ctx context.Context, name string) error {
	ctx, cancel := wait.Outlive(ctx, ctrd.ReleaseGrace)
	defer cancel()
	if err := a.Containerd.Leases.Drop(ctx, name); err != nil && !errors.Is(err, ctrd.ErrUnavailable) {
		return err
	}
	return nil
}

// read names images last, when all of them are whole and unpacked.
func (a Archives) read(ctx context.Context, r io.Reader, ref string, out *Imported) error {
	room := a.Room
	if room == nil {
		room = func(context.Context) error { return nil }
	}
	imgs, leftOut, err := archive.Read(ctx, a.Containerd.Content, room, r, ref)
	if err != nil {
		return err
	}
	for _, img := range imgs {
		if _, err := a.Containerd.Content.Walk(ctx, img.Target); err != nil {
			return artifact.InArchive(err)
		}
	}
	for _, img := range imgs {
		if err := a.Containerd.Runtime.Unpack(ctx, img.Target); err != nil {
			return artifact.InArchive(err)
		}
	}
	for _, img := range imgs { // all before the first is named: they may share records
		if _, known := out.before[img.Reference]; known {
			continue // the archive has two images of this name; what was before the first counts
		}
		if out.before[img.Reference], err = a.Containerd.Images.Remember(ctx, img.Reference, img.Target); err != nil {
			return err
		}
	}
	for _, img := range imgs {
		if err := a.Containerd.Images.Publish(ctx, img.Reference, img.Target); err != nil {
			return err
		}
		out.Names, out.Targets[img.Reference] = append(out.Names, img.Reference), img.Target.Digest
	}
	slices.Sort(out.Names)
	out.Names, out.LeftOut = slices.Compact(out.Names), leftOut
	return nil
}

// ImportArchive brings the images of an archive into containerd; what it names is
// ready for Prepare. With ref only that one is named. Where anything fails nothing is.
func (s *Store) ImportArchive(ctx context.Context, r io.Reader, ref string) (Imported, error) {
	if ref != "" {
		var err error
		if ref, err = imageref.Normalize(ref); err != nil {
			return Imported{}, err
		}
	}
	s.locks.archives.RLock()
	defer s.locks.archives.RUnlock()
	room := func(ctx context.Context) error { return s.disks.room(ctx, need{}, need{bytes: archiveRoom}) }
	out, err := Archives{s.ctrd, room}.Import(ctx, r, ref)
	if err == nil {
		if err := s.checkOpen(ctx); err != nil { // who waits goes on waiting for peers
			s.cfg.Log.Warn("failed to look for the blobs that an archive has brought", "err", err)
		}
	}
	return out, err
}
