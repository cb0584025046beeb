package stage

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"seeder/internal/disk/disktest"
	"seeder/store/chunk"
)

// again opens what a crash left and says what was logged.
func again(t testing.TB, dir string, f fixture) (*Blob, func() string) {
	t.Helper()
	var log bytes.Buffer
	d, err := Open(dir, Fixed(1<<30), chunk.NewCodec(), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return openBlob(t, d, f, true), log.String
}

// TestEveryCrash: a kill at any step loses no frame that was put; a power cut may
// lose some; neither makes one believed that is another, and fetching goes on.
func TestEveryCrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "crash")
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		d := openDir(t, dir, 1<<30)
		b := openBlob(t, d, f, true)
		for n := range f.raw {
			f.put(t, b, n)
			ack(fmt.Sprint(n))
		}
		b.Finish() // to the cache
		ack("finished")
		b.Close()
		b = openBlob(t, d, f, true) // and back
		ack("fetched again")
		b.Close()
	}, func(t *testing.T, s disktest.State) {
		b, log := again(t, s.Dir, f)
		defer b.Close()
		for n := range f.raw {
			if b.Have(n) {
				f.check(t, b, n)
			} else if !s.Power && s.Has(fmt.Sprint(n)) {
				t.Errorf("frame %d is lost", n)
			}
		}
		if strings.Count(log(), "\n") > 1 {
			t.Error(log())
		}
		for n := range f.raw {
			f.put(t, b, n)
			f.check(t, b, n)
		}
		b.Finish()
		if b.closedFile() {
			t.Error("what was compressed is not kept")
		}
	})
}

// closedFile reports whether there is no file.
func (b *Blob) closedFile() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.file == nil
}

// TestKilled: as TestEveryCrash, at random times.
func TestKilled(t *testing.T) {
	t.Parallel()
	blob := func(k int) fixture { return newFixture(t, fmt.Sprint("blob ", k)) }
	disktest.Kills(t, 50, 100*time.Millisecond, func(dir string, ack func(string)) {
		d := openDir(t, dir, 1<<30)
		for k := 0; ; k++ {
			f := blob(k)
			b := openBlob(t, d, f, true)
			for n := range f.raw {
				f.put(t, b, n)
				ack(fmt.Sprint(k, " ", n))
			}
			if k%3 == 0 {
				b.Finish()
			}
			b.Close()
		}
	}, func(t *testing.T, s disktest.State) {
		var open *Blob
		var of fixture
		last := -1
		for _, word := range s.Acked {
			var k, n int
			if _, err := fmt.Sscan(word, &k, &n); err != nil {
				t.Fatal(err)
			}
			if k != last {
				if open != nil {
					open.Close()
				}
				of, last = blob(k), k
				open, _ = again(t, s.Dir, of)
			}
			if !open.Have(n) {
				t.Errorf("frame %d of blob %d is lost", n, k)
				continue
			}
			of.check(t, open, n)
		}
	})
}

// TestDiskFull: a frame for which there is no room is not held, the ones before it
// are, and the file has none of it.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	f := newFixture(t, "full")
	b, _ := again(t, disktest.TempDir(t), f)
	f.put(t, b, 0)
	for limit := b.end; limit < b.end+headerBytes+int64(len(f.pays[1])); limit += 5 {
		disktest.LimitFiles(t, uint64(limit))
		if err := b.Put(1, f.encs[1], f.pays[1]); err == nil || !strings.Contains(err.Error(), "file too large") {
			t.Fatalf("room for %d bytes: %v", limit, err)
		}
		if st, err := b.file.Stat(); b.Have(1) || err != nil || st.Size() != b.end {
			t.Fatalf("held: %v, a file of %d bytes, want %d, %v", b.Have(1), st.Size(), b.end, err)
		}
	}
	f.check(t, b, 0)
	disktest.LimitFiles(t, disktest.NoLimit)
	f.put(t, b, 1)
	f.check(t, b, 1)
}

// TestUnreadable: what the disk cannot give back is damaged, and no reason to give
// up the image.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "unreadable")
	dir := t.TempDir()
	b, _ := again(t, dir, f)
	f.put(t, b, 0)
	f.put(t, b, 1)
	b.Close()
	h, err := openHandle(b.path(), os.O_WRONLY) // reading fails, as on a bad sector
	if err != nil {
		t.Fatal(err)
	}
	b.file, b.verified = h, false
	if err := b.scan(); err != nil || b.held != 0 || b.end != 0 {
		t.Errorf("%v, %d held", err, b.held)
	}
	b.users++
	f.put(t, b, 0)
	b.Close()
	b, _ = again(t, dir, f)
	f.check(t, b, 0)
}

// TestDisk: as TestDiskFull, on a real disk, and on one that is read-only.
func TestDisk(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	f := newFixture(t, "disk")
	for n := range f.raw { // larger than a page of memory
		f.encs[n], f.pays[n] = chunk.Raw, f.raw[n]
	}
	root, readOnly := disktest.SmallDisk(t, 4<<20)
	b, _ := again(t, root, f)
	f.put(t, b, 0)
	free := disktest.Fill(t, root)
	if err := b.Put(1, f.encs[1], f.pays[1]); err == nil || !strings.Contains(err.Error(), "no space left") || b.Have(1) {
		t.Errorf("full: held %v, %v", b.Have(1), err)
	}
	f.check(t, b, 0)
	free()
	f.put(t, b, 1)
	b.Close()
	readOnly()
	if _, err := b.dir.Blob(f.info, true); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("read-only: %v", err)
	}
}
