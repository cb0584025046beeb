package stage

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"seeder/store/chunk"
)

// rot changes one byte of the payload of chunk n on disk.
func rot(t *testing.T, b *Blob, n int) {
	t.Helper()
	f, err := os.OpenFile(b.path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1)
	if _, err := f.ReadAt(p, b.at[n].off+int64(b.at[n].len)/2); err != nil {
		t.Fatal(err)
	}
	p[0] ^= 1
	if _, err := f.WriteAt(p, b.at[n].off+int64(b.at[n].len)/2); err != nil {
		t.Fatal(err)
	}
}

// unreadable has reads of b's file fail until the end of the returned function, as those of
// a sector that the disk does not give back.
func unreadable(t *testing.T, b *Blob) (well func()) {
	t.Helper()
	whole := b.file.File
	f, err := os.OpenFile(b.path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.file.File = f
	for n := range b.at {
		b.at[n].summed = time.Time{} // it is long ago that they were read
	}
	return func() {
		b.file.File = whole
		f.Close()
	}
}

// TestRottenFrame: one byte that rots after it was verified, or that the disk does not give
// back, is found before the frame is sent. A frame of the cache is dropped, so that it is
// made anew; one that is staged is left for the import to meet, which has counted on it.
func TestRottenFrame(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cached, unread bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "rot")
		b := openBlob(t, d, f, true)
		for n := range f.raw {
			f.put(t, b, n)
		}
		if c.cached {
			b.Finish()
		}
		well := func() {}
		if c.unread {
			well = unreadable(t, b)
		} else {
			rot(t, b, 1)
		}
		if _, _, _, err := b.Frame(1); !errors.Is(err, ErrDamaged) || c.unread != errors.Is(err, syscall.EBADF) {
			t.Errorf("%+v: opened: %v", c, err)
		}
		well()
		if b.Have(1) == c.cached {
			t.Errorf("%+v: held afterwards: %v", c, b.Have(1))
		}
		f.check(t, b, 0)
		f.check(t, b, 2)
		b.Drop(1)
		f.put(t, b, 1)
		f.check(t, b, 1)
		b.Close()
	}
}

// TestSoundForAWhile: what was put or summed a moment ago is not read again before it is
// sent, unless somebody else has written to the file. Later it is, and the import reads and
// sums each time.
func TestSoundForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "sound")
		b := openBlob(t, d, f, true)
		defer b.Close()
		f.put(t, b, 0)
		f.put(t, b, 1)
		rot(t, b, 1)
		b.stamp = b.file.stamp() // as a disk rots
		open := func() error {
			_, _, r, err := b.Frame(1)
			if err == nil {
				r.Close()
			}
			return err
		}
		if err := open(); err != nil {
			t.Errorf("a frame was read again just after it was put: %v", err)
		}
		read := func(_ chunk.Encoding, bytes int) []byte { return make([]byte, bytes) }
		if _, _, err := b.Read(1, read); !errors.Is(err, ErrDamaged) {
			t.Errorf("the import got a rotten frame: %v", err)
		}
		time.Sleep(soundFor)
		if err := open(); !errors.Is(err, ErrDamaged) {
			t.Errorf("a frame that rotted long ago was opened: %v", err)
		}
		f.put(t, b, 2)
		before, err := os.Stat(b.path())
		if err != nil {
			t.Fatal(err)
		}
		rot(t, b, 2)
		if err := os.Chtimes(b.path(), before.ModTime(), before.ModTime()); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := b.Frame(2); !errors.Is(err, ErrDamaged) {
			t.Errorf("a frame that somebody has overwritten was opened: %v", err)
		}
	})
}
