package stage

import (
	"errors"
	"os"
	"testing"
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

// TestRottenFrame: one byte that rots after it was verified is found before the frame is
// sent. A frame of the cache is dropped, so that it is made anew; one that is staged is
// left for the import to meet, which has counted on it.
func TestRottenFrame(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{false, true} {
		d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "rot")
		b := openBlob(t, d, f, true)
		for n := range f.raw {
			f.put(t, b, n)
		}
		if cached {
			b.Finish()
		}
		rot(t, b, 1)
		if _, _, _, err := b.Frame(1); !errors.Is(err, ErrDamaged) {
			t.Errorf("cached %v: a rotten frame was opened: %v", cached, err)
		}
		if b.Have(1) == cached {
			t.Errorf("cached %v: held afterwards: %v", cached, b.Have(1))
		}
		f.check(t, b, 0)
		f.check(t, b, 2)
		b.Drop(1)
		f.put(t, b, 1)
		f.check(t, b, 1)
		b.Close()
	}
}
