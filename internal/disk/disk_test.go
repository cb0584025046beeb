package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"seeder/internal/disk/disktest"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// TestWriteFileCut: the old content or the new one, never another, and the new one
// for good once it was said.
func TestWriteFileCut(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, func(dir string) {
		must(os.WriteFile(filepath.Join(dir, "f"), []byte("old content"), 0o600))
	}, func(dir string, ack func(string)) {
		must(WriteFile(filepath.Join(dir, "f"), []byte("the new content")))
		ack("new")
		must(WriteFile(filepath.Join(dir, "f"), nil))
		ack("empty")
	}, func(t *testing.T, s disktest.State) {
		b, err := os.ReadFile(filepath.Join(s.Dir, "f"))
		got := string(b)
		switch {
		case err != nil:
			t.Error(err)
		case got == "old content" && !s.Has("new"), got == "the new content" && !s.Has("empty"), got == "":
		default:
			t.Errorf("%q", got)
		}
		if got == "" && !s.Has("new") {
			t.Error("empty before anybody asked for that")
		}
		clean(t, s.Dir, "f")
	})
}

// clean removes what is half written and checks that nothing else is there.
func clean(t *testing.T, dir string, want ...string) {
	t.Helper()
	if err := RemoveUnfinished(dir); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > len(want) {
		t.Errorf("%v is there, %v", entries, err)
	}
}

func TestCreateFileCut(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		must(CreateFile(filepath.Join(dir, "f"), []byte("content")))
		ack("made")
		if err := CreateFile(filepath.Join(dir, "f"), []byte("other")); !errors.Is(err, fs.ErrExist) {
			panic(err)
		}
	}, func(t *testing.T, s disktest.State) {
		b, err := os.ReadFile(filepath.Join(s.Dir, "f"))
		if errors.Is(err, fs.ErrNotExist) && !s.Has("made") {
			return
		}
		if err != nil || string(b) != "content" {
			t.Errorf("%q %v", b, err)
		}
		clean(t, s.Dir, "f")
	})
}

var bucket = []byte("bucket")

func initBolt(tx *bolt.Tx) error {
	_, err := tx.CreateBucket(bucket)
	return err
}

func openDB(path string) *bolt.DB {
	db, err := OpenBolt(path, initBolt)
	must(err)
	return db
}

// fill puts n keys into the database, in one transaction.
func fill(db *bolt.DB, from, n int) error {
	return db.Update(func(tx *bolt.Tx) error {
		for k := from; k < from+n; k++ {
			if err := tx.Bucket(bucket).Put(fmt.Appendf(nil, "key %05d", k), bytes.Repeat([]byte{byte(k)}, 500)); err != nil {
				return err
			}
		}
		return nil
	})
}

func count(t *testing.T, db *bolt.DB) (n int) {
	t.Helper()
	err := db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, v []byte) error {
			if len(v) != 500 {
				t.Errorf("a value of %d bytes", len(v))
			}
			n++
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestBoltCut: a database is never damaged by a crash, and transactions are there
// whole or not at all.
func TestBoltCut(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		db := openDB(filepath.Join(dir, "db"))
		ack("made")
		must(fill(db, 0, 3))
		ack("3")
		must(fill(db, 3, 60)) // splits the root
		ack("63")
		must(db.Close())
	}, func(t *testing.T, s disktest.State) {
		if _, err := os.Stat(filepath.Join(s.Dir, "db")); s.Has("made") && err != nil {
			t.Fatal(err)
		}
		db, err := OpenBolt(filepath.Join(s.Dir, "db"), initBolt)
		if err != nil {
			t.Fatal(err)
		}
		n := count(t, db)
		if (n != 0 && n != 3 && n != 63) || (n < 3 && s.Has("3")) || (n < 63 && s.Has("63")) {
			t.Errorf("%d keys", n)
		}
		if err := errors.Join(fill(db, 100, 10), db.Close()); err != nil {
			t.Error(err)
		}
		clean(t, s.Dir, "db")
	})
}

// manyKeys is a database with branches, an inline bucket, values of several pages
// and free pages.
func manyKeys(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(disktest.TempDir(t), "db")
	db := openDB(path)
	must(fill(db, 0, 400))
	must(db.Update(func(tx *bolt.Tx) error {
		inline, err := tx.CreateBucket([]byte("inline"))
		must(err)
		must(inline.Put([]byte("k"), []byte("v")))
		nested, err := tx.Bucket(bucket).CreateBucket([]byte("a nested one"))
		must(err)
		must(tx.Bucket(bucket).DeleteBucket([]byte("a nested one")))
		_ = nested
		return tx.Bucket(bucket).Put([]byte("key large"), make([]byte, 500))
	}))
	must(db.Update(func(tx *bolt.Tx) error {
		big, err := tx.CreateBucket([]byte("big"))
		must(err)
		return big.Put([]byte("big"), make([]byte, 20_000))
	}))
	must(db.Close())
	f, err := os.Open(path)
	must(err)
	defer f.Close()
	st, err := f.Stat()
	must(err)
	m, err := newestMeta(f, st.Size())
	must(err)
	b := make([]byte, m.high*m.pageSize) // the rest is not in use
	_, err = f.ReadAt(b, 0)
	must(err)
	return b
}

// use opens a file and, where it passes for a database, reads all of it and writes
// to it.
func use(t testing.TB, path string) error {
	db, err := OpenBolt(path, initBolt)
	if err != nil {
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, want ErrDamaged and the file's name", err)
		}
		return err
	}
	defer db.Close()
	read := func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				_, _ = bytes.Clone(k), bytes.Clone(v)
				return nil
			})
		})
	}
	if err := db.View(read); err != nil {
		t.Errorf("read: %v", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		for k := 0; k < 400 && err == nil; k += 50 {
			err = b.Put(fmt.Appendf(nil, "key %05d", k), []byte("other"))
		}
		return err
	})
	if err != nil && !errors.Is(err, bolterrors.ErrIncompatibleValue) { // a flag that was turned: not for bbolt to know
		t.Errorf("write: %v", err)
	}
	if err := db.View(read); err != nil {
		t.Errorf("read after a write: %v", err)
	}
	return nil
}

// TestDamagedBolt: bits of the file change, and the process neither ends nor
// hangs: what cannot be followed is damaged, and the rest can be used.
func TestDamagedBolt(t *testing.T) {
	t.Parallel()
	whole := manyKeys(t)
	path := filepath.Join(disktest.TempDir(t), "db")
	try := func(t *testing.T, b []byte) error {
		must(os.WriteFile(path, b, 0o600))
		return use(t, path)
	}
	if err := try(t, whole); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	const rounds = 1000
	for n := range uint64(rounds) {
		r := rand.New(rand.NewPCG(n, 0))
		b := bytes.Clone(whole)
		page := r.IntN(len(b) / 4096)
		for range 1 + r.IntN(3) {
			at := r.IntN([]int{16, 64, 300, 4096}[r.IntN(4)]) // where the headers are, mostly
			b[page*4096+at] ^= 1 << r.IntN(8)
		}
		if try(t, b) != nil {
			damaged++
		}
		if t.Failed() {
			t.Fatalf("in round %d", n)
		}
	}
	if damaged < rounds/10 || damaged == rounds {
		t.Errorf("%d of %d were damaged", damaged, rounds)
	}
	for n := 0; n < len(whole); n += 1000 {
		if try(t, whole[:n]) == nil {
			t.Errorf("cut to %d bytes of %d, and opened", n, len(whole))
		}
	}
	for page := 0; page < len(whole); page += 4096 {
		for name, fill := range map[string]byte{"zeros": 0, "ones": 0xff} {
			b := bytes.Clone(whole)
			copy(b[page:page+4096], bytes.Repeat([]byte{fill}, 4096))
			if try(t, b); t.Failed() {
				t.Fatalf("page %d is all %s", page/4096, name)
			}
		}
		b := bytes.Clone(whole) // a page in the place of another
		copy(b[page:page+4096], whole[4096*(page/8192):])
		if try(t, b); t.Failed() {
			t.Fatalf("page %d is another one", page/4096)
		}
	}
}

func FuzzDamagedBolt(f *testing.F) {
	whole := manyKeys(f)
	f.Add(uint32(0), []byte{1}, uint32(4096*3), []byte{0xff, 0xff})
	f.Add(uint32(4096*2+8), []byte{0x10}, uint32(8), []byte{})
	f.Fuzz(func(t *testing.T, at uint32, put []byte, at2 uint32, put2 []byte) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], put)
		copy(b[int(at2)%len(b):], put2)
		path := filepath.Join(disktest.TempDir(t), "db")
		must(os.WriteFile(path, b, 0o600))
		_ = use(t, path)
	})
}

func TestNotABolt(t *testing.T) {
	t.Parallel()
	dir := disktest.TempDir(t)
	path := filepath.Join(dir, "db")
	must(os.Mkdir(path, 0o700))
	if _, err := OpenBolt(path, initBolt); !errors.Is(err, ErrDamaged) {
		t.Errorf("a directory: %v", err)
	}
	for _, before := range []string{"", "aside of before"} {
		aside, err := SetAside(path)
		if err != nil || before == "" && aside != path+".damaged" {
			t.Fatalf("set aside as %s: %v", aside, err)
		}
		must(syscall.Mkfifo(path, 0o600))
		if _, err := OpenBolt(path, initBolt); !errors.Is(err, ErrDamaged) {
			t.Errorf("a pipe: %v", err)
		}
	}
	must(os.Remove(path))
	db := openDB(path)
	if _, err := OpenBolt(path, initBolt); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	must(db.Close())
	must(os.Chmod(path, 0o044))
	must(openDB(path).Close())
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
}

// TestLimitEnds: a limit of a test ends with it, so that the process can write what comes
// after tests, such as the counts of `go test -cover`.
func TestLimitEnds(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	path := filepath.Join(disktest.TempDir(t), "f")
	t.Run("limited", func(t *testing.T) {
		disktest.LimitFiles(t, 5)
		disktest.LimitFiles(t, 1)
		if err := os.WriteFile(path, []byte("content"), 0o600); err == nil {
			t.Error("a byte of room, and 7 were written")
		}
	})
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Error(err)
	}
}

// TestFull: where the disk is full nothing changes, and nothing is left.
func TestFull(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	dir := disktest.TempDir(t)
	file, path := filepath.Join(dir, "f"), filepath.Join(dir, "db")
	for _, limit := range []uint64{0, 1, 5000} {
		disktest.LimitFiles(t, limit)
		if err := WriteFile(file, make([]byte, 6000)); err == nil {
			t.Errorf("%d bytes of room for 6000", limit)
		}
		if _, err := OpenBolt(path, initBolt); err == nil {
			t.Errorf("%d bytes of room for a database", limit)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%d bytes of room: left behind: %v %v", limit, left, err)
		}
	}
	disktest.LimitFiles(t, disktest.NoLimit)
	must(WriteFile(file, []byte("content")))
	db := openDB(path)
	must(fill(db, 0, 10))
	for limit := uint64(0); limit < 200_000; limit += 3333 {
		disktest.LimitFiles(t, limit)
		err := fill(db, 10, 300) // some 150 kB
		if count(t, db); err == nil {
			t.Errorf("%d bytes of room were enough", limit)
			break
		}
		if n := count(t, db); n != 10 {
			t.Fatalf("%d keys after a write that failed with %d bytes of room: %v", n, limit, err)
		}
	}
	must(db.Close())
	db = openDB(path) // which needs no room
	if n := count(t, db); n != 10 {
		t.Errorf("%d keys after it was opened again", n)
	}
	disktest.LimitFiles(t, disktest.NoLimit)
	must(fill(db, 10, 300))
	if n := count(t, db); n != 310 {
		t.Errorf("%d keys once there was room", n)
	}
	must(db.Close())
}

// TestOrderOfSmallBucket: a key out of order in a bucket that is so small that it lies in
// its parent is found when the database is opened, not when the bucket has grown.
func TestOrderOfSmallBucket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db, err := OpenBolt(path, func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("small"))
		return errors.Join(err, b.Put([]byte("key/1"), nil), b.Put([]byte("key/2"), nil))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(file, []byte("key/2")); n != 1 {
		t.Fatalf("the key is there %d times", n)
	}
	if err := os.WriteFile(path, bytes.Replace(file, []byte("key/2"), []byte("key-2"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBolt(path, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("opened with %v", err)
	}
}
