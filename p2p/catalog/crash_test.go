package catalog

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"seeder/internal/disk/disktest"
	"seeder/p2p/trust"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// known is the same identity in all processes.
func known(t testing.TB) *trust.Identity {
	path := filepath.Join(t.TempDir(), "identity")
	must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "SEEDER NODE IDENTITY", Bytes: make([]byte, 32)}), 0o600))
	id, err := trust.LoadOrCreateIdentity(path)
	must(err)
	return id
}

func nth(t testing.TB, id *trust.Identity, n int) Record {
	return sign(t, id, announcement(fmt.Sprintf("docker.io/library/image:%d", n), 1, fmt.Sprint("content ", n)))
}

// isNth reports whether r is one that nth made.
func isNth(t testing.TB, id *trust.Identity, r Record) bool {
	var n int
	_, err := fmt.Sscanf(r.ann.Reference, "docker.io/library/image:%d", &n)
	return err == nil && r.Hash() == nth(t, id, n).Hash()
}

// opened opens the catalog below dir and says what was logged.
func opened(t testing.TB, dir string) (*Catalog, string) {
	t.Helper()
	var log bytes.Buffer
	c, err := Open(Config{Path: filepath.Join(dir, "catalog.db"), Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	return c, log.String()
}

// TestEveryCut: whatever was said to be written is there after a crash, nothing
// else than that is, and a crash damages nothing.
func TestEveryCut(t *testing.T) {
	t.Parallel()
	id := known(t)
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		c, _ := opened(t, dir)
		merge := func(from, n int, word string) {
			var records []Record
			for k := from; k < from+n; k++ {
				records = append(records, nth(t, id, k))
			}
			_, err := c.Merge(records...)
			must(err)
			ack(word)
		}
		merge(0, 1, "1")
		must(c.SetReached(nth(t, id, 0)))
		ack("reached")
		merge(1, 20, "21")
		gone := announcement("docker.io/library/image:0", 2, "gone")
		gone.Withdrawn = true
		rec := sign(t, id, gone)
		_, err := c.Merge(rec)
		must(err)
		must(c.SetReached(rec))
		must(c.Expire(time.Now()))
		ack("expired")
		must(c.Close())
	}, func(t *testing.T, s disktest.State) {
		c, log := opened(t, s.Dir)
		if log != "" {
			t.Error(log)
		}
		withdrawn := false
		for _, r := range c.All() {
			if withdrawn = withdrawn || r.ann.Withdrawn; !r.ann.Withdrawn && !isNth(t, id, r) {
				t.Errorf("%s was never there", r.ann.Reference)
			}
		}
		first := nth(t, id, 0)
		switch n := len(c.All()); {
		case s.Has("expired"):
			if n != 20 || withdrawn {
				t.Errorf("%d records, withdrawn %v, after what expired", n, withdrawn)
			}
		case s.Has("21"):
			if n != 21 && n != 20 {
				t.Errorf("%d records of 21", n)
			}
		case n != 0 && n != 1 && n != 21, n == 0 && s.Has("1"):
			t.Errorf("%d records", n)
		case s.Has("reached") && !c.Reached(first):
			t.Error("what was reached is forgotten")
		}
		_, err := c.Merge(nth(t, id, 500))
		if err := errors.Join(err, c.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestKilled: as TestEveryCut, at random times and with everything that a process
// does besides.
func TestKilled(t *testing.T) {
	t.Parallel()
	id := known(t)
	disktest.Kills(t, 50, 100*time.Millisecond, func(dir string, ack func(string)) {
		c, log := opened(t, dir)
		if log != "" {
			panic(log)
		}
		for k := len(c.All()); ; k++ {
			_, err := c.Merge(nth(t, id, k))
			must(err)
			ack(fmt.Sprint(k))
		}
	}, func(t *testing.T, s disktest.State) {
		c, log := opened(t, s.Dir)
		defer c.Close()
		if log != "" {
			t.Error(log)
		}
		for _, word := range s.Acked {
			if _, ok := c.Get("docker.io/library/image:" + word); !ok {
				t.Errorf("record %s is lost", word)
			}
		}
	})
}

// TestDamagedFile: whatever is in the place of the file, the catalog opens, says
// in one line where it is now, believes no record that is not signed, and can be
// written and opened again.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	id := known(t)
	made := disktest.TempDir(t)
	c, _ := opened(t, made)
	var all []Record
	for k := range 40 {
		all = append(all, nth(t, id, k))
		_, err := c.Merge(all[k])
		must(errors.Join(err, c.SetReached(all[k])))
	}
	must(c.Close())
	whole, err := os.ReadFile(filepath.Join(made, "catalog.db"))
	must(err)

	check := func(t *testing.T, name string, put func(path string) error, want bool) (damaged bool) {
		dir := disktest.TempDir(t)
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "catalog.db")
		must(put(path))
		c, log := opened(t, dir)
		damaged = strings.Contains(log, "renamed it")
		if want && (!damaged || strings.Count(log, "\n") != 1 || !strings.Contains(log, path+".damaged") || len(c.All()) != 0) {
			t.Errorf("%s: %d records, and it says\n%s", name, len(c.All()), log)
		}
		if missing := 40 - len(c.All()); !damaged && strings.Count(log, "\n") < missing {
			t.Errorf("%s: %d records are missing, and it says\n%s", name, missing, log)
		}
		for _, r := range c.All() {
			if !slices.ContainsFunc(all, func(a Record) bool { return a.Hash() == r.Hash() }) {
				t.Errorf("%s: believes %s", name, r.ann.Reference)
			}
		}
		_, err := c.Merge(all...)
		must(errors.Join(err, c.SetReached(all[7]), c.Close()))
		c, log = opened(t, dir)
		if len(c.All()) != 40 || log != "" {
			t.Errorf("%s: %d records after it was fixed, and it says\n%s", name, len(c.All()), log)
		}
		must(c.Close())
		return damaged
	}
	file := func(b []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, b, 0o600) }
	}
	for name, put := range map[string]func(string) error{
		"empty":       file(nil),
		"one byte":    file([]byte{1}),
		"garbage":     file(bytes.Repeat([]byte("garbage "), 10_000)),
		"zeros":       file(make([]byte, len(whole))),
		"one page":    file(whole[:4096]),
		"half":        file(whole[:len(whole)/2]),
		"a directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "sub"), 0o700) },
	} {
		check(t, name, put, true)
	}
	check(t, "wrong permissions", func(path string) error { return errors.Join(file(whole)(path), os.Chmod(path, 0)) }, false)
	var damaged int
	for n := range 100 {
		r := rand.New(rand.NewPCG(uint64(n), 1))
		b := bytes.Clone(whole)
		page := r.IntN(len(b) / 4096)
		b[page*4096+r.IntN(4096)] ^= 1 << r.IntN(8)
		b[page*4096+r.IntN(200)] ^= 1 << r.IntN(8)
		if check(t, fmt.Sprint("round ", n), file(b), false) {
			damaged++
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of 100 were set aside", damaged)
}

// TestSetAsideCut: setting a damaged file aside, with one from before in its way,
// can be cut anywhere; the damage is found again or the new file is there.
func TestSetAsideCut(t *testing.T) {
	t.Parallel()
	id := known(t)
	disktest.Crashes(t, func(dir string) {
		path := filepath.Join(dir, "catalog.db")
		must(errors.Join(os.WriteFile(path, []byte("damage"), 0o600), os.Mkdir(path+".damaged", 0o700),
			os.WriteFile(filepath.Join(path+".damaged", "f"), nil, 0o600)))
	}, func(dir string, ack func(string)) {
		c, _ := opened(t, dir)
		_, err := c.Merge(nth(t, id, 0))
		must(err)
		ack("merged")
	}, func(t *testing.T, s disktest.State) {
		c, log := opened(t, s.Dir)
		if n := len(c.All()); strings.Count(log, "\n") > 1 || (s.Has("merged") && (n != 1 || log != "")) {
			t.Errorf("%d records, and it says\n%s", n, log)
		}
		if _, err := c.Merge(nth(t, id, 0)); err != nil {
			t.Error(err)
		}
		must(c.Close())
		if b, err := os.ReadFile(filepath.Join(s.Dir, "catalog.db.damaged")); err != nil || string(b) != "damage" {
			t.Errorf("set aside: %q %v", b, err)
		}
	})
}

// TestDamagedRecordIsToldOnce: it is taken out of the file, and a good one may come.
func TestDamagedRecordIsToldOnce(t *testing.T) {
	t.Parallel()
	id := known(t)
	dir := disktest.TempDir(t)
	c, _ := opened(t, dir)
	_, err := c.Merge(nth(t, id, 0), nth(t, id, 1))
	must(err)
	other := nth(t, id, 1).Encode()
	must(c.file.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(recordsBucket)
		return errors.Join(b.Put([]byte(nth(t, id, 0).ann.Reference), other[:len(other)-1]),
			b.Put([]byte("docker.io/library/image:2"), other)) // signed, for another name
	}))
	must(c.Close())
	c, log := opened(t, dir)
	if len(c.All()) != 1 || strings.Count(log, "damaged record") != 2 || strings.Contains(log, "renamed it") {
		t.Errorf("%d records, and it says\n%s", len(c.All()), log)
	}
	must(c.Close())
	c, log = opened(t, dir)
	if len(c.All()) != 1 || log != "" {
		t.Errorf("%d records, and it says again\n%s", len(c.All()), log)
	}
	if changed, err := c.Merge(nth(t, id, 0), nth(t, id, 2)); err != nil || len(changed) != 2 {
		t.Errorf("%d came back, %v", len(changed), err)
	}
	must(c.Close())
}

// TestDiskFull: a record that cannot be written is not taken, says why, and is
// taken once there is room; a catalog opens without any.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	id := known(t)
	dir := disktest.TempDir(t)
	c, _ := opened(t, dir)
	_, err := c.Merge(nth(t, id, 0))
	must(err)
	before := c.Hash()
	disktest.LimitFiles(t, 1)
	if _, err := c.Merge(nth(t, id, 1)); err == nil || !strings.Contains(err.Error(), "file too large") || !strings.Contains(err.Error(), dir) {
		t.Errorf("no room: %v", err)
	}
	if err := c.SetReached(nth(t, id, 0)); err == nil || c.Reached(nth(t, id, 0)) {
		t.Errorf("no room: %v", err)
	}
	if c.Hash() != before {
		t.Error("a record was taken that is not on disk")
	}
	must(c.Close())
	c, log := opened(t, dir)
	if c.Hash() != before || log != "" {
		t.Errorf("opened without room: %s", log)
	}
	disktest.LimitFiles(t, disktest.NoLimit)
	if changed, err := c.Merge(nth(t, id, 1)); err != nil || len(changed) != 1 {
		t.Errorf("with room: %v", err)
	}
	must(c.Close())
}

// TestDisk: as TestDiskFull, on a real disk; one that is read-only is no damage.
func TestDisk(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	id := known(t)
	root, readOnly := disktest.SmallDisk(t, 128<<10)
	c, _ := opened(t, root)
	free := disktest.Fill(t, root)
	taken := 0
	var err error
	for ; err == nil && taken < 1000; taken++ { // the file has room for some
		_, err = c.Merge(nth(t, id, taken))
	}
	if taken--; err == nil || !strings.Contains(err.Error(), "no space left") || len(c.All()) != taken {
		t.Errorf("%d of %d records on a full disk: %v", len(c.All()), taken, err)
	}
	must(c.Close())
	c, log := opened(t, root)
	if len(c.All()) != taken || log != "" {
		t.Errorf("%d of %d records, and it says\n%s", len(c.All()), taken, log)
	}
	free()
	if _, err := c.Merge(nth(t, id, taken)); err != nil {
		t.Errorf("with room: %v", err)
	}
	must(c.Close())
	readOnly()
	_, err = Open(Config{Path: filepath.Join(root, "catalog.db")})
	if err == nil || !strings.Contains(err.Error(), "catalog.db: read-only file system") {
		t.Errorf("read-only: %v", err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}
