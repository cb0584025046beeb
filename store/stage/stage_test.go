package stage

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// fixture is a blob of three chunks and their frames.
type fixture struct {
	info chunk.Blob
	raw  [][]byte
	encs []chunk.Encoding
	pays [][]byte
}

func newFixture(t testing.TB, word string) fixture {
	t.Helper()
	blob := bytes.Repeat([]byte(word+" and again "), 60_000)[:2*chunk.MinBytes+1000]
	sums, err := chunk.Sum(t.Context(), bytes.NewReader(blob), int64(len(blob)), chunk.MinBytes)
	if err != nil {
		t.Fatal(err)
	}
	f := fixture{info: chunk.Blob{Digest: digest.FromBytes(blob), Bytes: int64(len(blob)), ChunkBytes: chunk.MinBytes, Sums: sums}}
	codec := chunk.NewCodec()
	for i := range sums {
		raw := blob[i*chunk.MinBytes : i*chunk.MinBytes+f.info.ChunkLen(i)]
		enc, p, err := codec.Encode(nil, raw, chunk.Thorough, false)
		if err != nil {
			t.Fatal(err)
		}
		f.raw, f.encs, f.pays = append(f.raw, raw), append(f.encs, enc), append(f.pays, p)
	}
	return f
}

func openDir(t testing.TB, dir string, cacheBytes int64) *Dir {
	t.Helper()
	d, err := Open(dir, Fixed(cacheBytes), chunk.NewCodec(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func openBlob(t testing.TB, d *Dir, f fixture, fetching bool) *Blob {
	t.Helper()
	b, err := d.Blob(f.info, fetching)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (f fixture) put(t testing.TB, b *Blob, n int) {
	t.Helper()
	if err := b.Put(n, f.encs[n], f.pays[n]); err != nil {
		t.Fatal(err)
	}
}

// check reads chunk n back.
func (f fixture) check(t testing.TB, b *Blob, n int) {
	t.Helper()
	enc, size, r, err := b.Frame(n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := io.ReadAll(r)
	if err != nil || enc != f.encs[n] || size != int64(len(p)) || !bytes.Equal(p, f.pays[n]) {
		t.Fatalf("frame %d: encoding %d, %d of %d bytes, %v", n, enc, len(p), size, err)
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	dir, f := t.TempDir(), newFixture(t, "resume")
	b := openBlob(t, openDir(t, dir, 1<<30), f, true)
	f.put(t, b, 2)
	f.put(t, b, 0)
	f.check(t, b, 2) // the process is killed here: nothing is closed

	b = openBlob(t, openDir(t, dir, 1<<30), f, true)
	if !b.Have(0) || b.Have(1) || !b.Have(2) {
		t.Fatalf("after the restart: %v %v %v, want what was put", b.Have(0), b.Have(1), b.Have(2))
	}
	f.put(t, b, 1)
	for n := range f.raw {
		f.check(t, b, n)
	}
	if _, _, _, err := openBlob(t, openDir(t, t.TempDir(), 1), f, true).Frame(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("frame that is not there: %v, want ErrNotExist", err)
	}
}

// TestEveryCut: the file is cut at every length, as a crash may; what is left of
// it is believed only as whole, verified frames.
func TestEveryCut(t *testing.T) {
	t.Parallel()
	dir, f := t.TempDir(), newFixture(t, "cut")
	b := openBlob(t, openDir(t, dir, 1<<30), f, true)
	var ends []int64
	for n := range f.raw {
		f.put(t, b, n)
		ends = append(ends, b.end)
	}
	whole, err := os.ReadFile(b.path())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(b.path())
	for cut := 0; cut <= len(whole); cut += 7 {
		d := openDir(t, t.TempDir(), 1<<30)
		path := filepath.Join(d.staged, name)
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		b := openBlob(t, d, f, true)
		for n, end := range ends {
			if want := int64(cut) >= end; b.Have(n) != want {
				t.Fatalf("cut at %d: frame %d (ends at %d) held: %v", cut, n, end, b.Have(n))
			}
		}
		for n := range f.raw {
			f.put(t, b, n)
			f.check(t, b, n)
		}
		b.Close()
	}
}

// TestDamage: a byte anywhere is changed; the frame that it hits is not believed,
// and fetching goes on.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir, f := t.TempDir(), newFixture(t, "damage")
	b := openBlob(t, openDir(t, dir, 1<<30), f, true)
	for n := range f.raw {
		f.put(t, b, n)
	}
	whole, err := os.ReadFile(b.path())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(b.path())
	for at := 0; at < len(whole); at += 11 {
		d := openDir(t, t.TempDir(), 1<<30)
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		if err := os.WriteFile(filepath.Join(d.staged, name), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		b := openBlob(t, d, f, true)
		held := 0
		for n := range f.raw {
			if b.Have(n) {
				held++
				f.check(t, b, n)
			}
		}
		if held == len(f.raw) {
			t.Fatalf("byte %d changed and every frame was believed", at)
		}
		for n := range f.raw {
			f.put(t, b, n)
			f.check(t, b, n)
		}
		b.Close()
	}
}

func TestFinishMovesToTheBoundedCache(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, g := newFixture(t, "first"), newFixture(t, "second")
	d := openDir(t, dir, 6000) // room for one of them
	for i, x := range []fixture{f, g} {
		b := openBlob(t, d, x, true)
		for n := range x.raw {
			x.put(t, b, n)
		}
		_, _, r, err := b.Frame(0) // a reader that is open while the file moves
		if err != nil {
			t.Fatal(err)
		}
		b.Finish()
		x.check(t, b, 1)
		b.Close()
		if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, x.pays[0]) {
			t.Errorf("open reader: %d bytes %v", len(p), err)
		}
		r.Close()
		past := time.Now().Add(time.Duration(i-10) * time.Minute)
		for _, e := range d.files(d.cached) {
			os.Chtimes(filepath.Join(d.cached, e.name), past, past)
		}
	}
	d.Sweep(time.Now())
	var total int64
	for _, e := range d.files(d.cached) {
		total += e.bytes
	}
	if _, limit := d.Cache(); total > limit.Bytes || total == 0 {
		t.Errorf("%d bytes in a cache of %d", total, limit.Bytes)
	}
	if left := d.files(d.staged); len(left) != 0 {
		t.Errorf("left in staging: %v", left)
	}
}

// TestFinishDropsWhatIsNotWorthKeeping: with others having it open, and a reader.
func TestFinishDropsWhatIsNotWorthKeeping(t *testing.T) {
	t.Parallel()
	d, f := openDir(t, t.TempDir(), 1), newFixture(t, "shared") // no room in the cache
	a, b := openBlob(t, d, f, true), openBlob(t, d, f, true)
	f.put(t, a, 1)
	f.check(t, b, 1)
	_, _, r, err := b.Frame(1)
	if err != nil {
		t.Fatal(err)
	}
	a.Finish()
	if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, f.pays[1]) {
		t.Errorf("open reader after Finish: %v", err)
	}
	r.Close()
	if b.Have(1) || len(d.files(d.staged)) > 0 {
		t.Error("held after Finish")
	}
	f.put(t, b, 2) // a late duplicate: neither an error nor a new staging file
	if len(d.files(d.staged))+len(d.files(d.cached)) > 0 {
		t.Error("a late frame made a file")
	}
	c := openBlob(t, d, f, true) // the blob vanished and is fetched again
	f.put(t, c, 1)
	f.check(t, b, 1)
	a.Close()
	b.Close()
	f.check(t, c, 1)
	c.Close()
	if err := c.Put(0, f.encs[0], f.pays[0]); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Put after the last Close: %v", err)
	}
	if got := len(d.files(d.staged)); got != 1 {
		t.Errorf("%d staged files", got)
	}
	f.check(t, openBlob(t, d, f, true), 1)
}

// TestCacheKeepsItsBoundWhileInUse: what is compressed for peers counts at once,
// and makes room by what nobody uses.
func TestCacheKeepsItsBoundWhileInUse(t *testing.T) {
	t.Parallel()
	f, g := newFixture(t, "first"), newFixture(t, "second")
	room := int64(len(f.pays[0])+len(f.pays[1])+len(f.pays[2])) + 3*headerBytes
	d := openDir(t, t.TempDir(), room+1)
	a := openBlob(t, d, f, false)
	for n := range f.raw {
		f.put(t, a, n)
		f.check(t, a, n)
	}
	b := openBlob(t, d, g, false)
	g.put(t, b, 0)
	if b.Have(0) {
		t.Error("a frame was kept beyond the bound")
	}
	a.Close()
	g.put(t, b, 0)
	g.check(t, b, 0)
	if files := d.files(d.cached); len(files) != 1 || d.used.Bytes != files[0].bytes {
		t.Errorf("%d bytes counted in %v", d.used.Bytes, files)
	}
	if a = openBlob(t, d, f, true); a.Have(0) {
		t.Error("a frame that was evicted is held")
	}
	// What is fetched is never cache.
	f.put(t, a, 0)
	f.put(t, a, 1)
	g.put(t, b, 1)
	f.check(t, a, 0)
	a.Close()
	b.Close()
	d.Sweep(time.Now())
	f.check(t, openBlob(t, d, f, true), 1)
}

// TestVerifiedOncePerProcess: the frames of a file are believed again without
// reading them, as long as nobody else wrote to it.
func TestVerifiedOncePerProcess(t *testing.T) {
	t.Parallel()
	d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "once")
	b := openBlob(t, d, f, true)
	f.put(t, b, 0)
	f.put(t, b, 1)
	b.Close()
	again := openBlob(t, d, f, true)
	if again != b {
		t.Error("what was verified is forgotten")
	}
	again.Close()
	if err := os.Truncate(b.path(), b.end-1); err != nil {
		t.Fatal(err)
	}
	b = openBlob(t, d, f, true)
	if !b.Have(0) || b.Have(1) {
		t.Error("a file that was changed is believed")
	}
}

// TestCutsAreDistinct: the same blob, cut or summed otherwise, shares no frame.
func TestCutsAreDistinct(t *testing.T) {
	t.Parallel()
	d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "cuts")
	a := openBlob(t, d, f, true)
	f.put(t, a, 0)
	lie := f
	lie.info.Sums = append([][32]byte(nil), f.info.Sums...)
	lie.info.Sums[0][0] ^= 1
	coarse := f
	coarse.info.ChunkBytes, coarse.info.Sums = chunk.MaxBytes, f.info.Sums[:1]
	for _, x := range []fixture{lie, coarse} {
		if b := openBlob(t, d, x, true); b.Have(0) {
			t.Error("a frame of another cut is held")
		}
	}
}

func TestSweepForgetsStaleFrames(t *testing.T) {
	t.Parallel()
	d, f := openDir(t, t.TempDir(), 1<<30), newFixture(t, "stale")
	b := openBlob(t, d, f, true)
	f.put(t, b, 0)
	later := time.Now().Add(8 * 24 * time.Hour)
	d.Sweep(later)
	f.check(t, b, 0) // in use
	b.Close()
	d.Sweep(time.Now())
	if len(d.files(d.staged)) != 1 {
		t.Fatal("frames of today were forgotten")
	}
	d.Sweep(later)
	if len(d.files(d.staged)) != 0 {
		t.Fatal("frames of last week are still there")
	}
}

func FuzzScan(f *testing.F) {
	x := newFixture(f, "fuzz")
	d := openDir(f, f.TempDir(), 1<<30)
	b := openBlob(f, d, x, true)
	x.put(f, b, 0)
	x.put(f, b, 2)
	whole, err := os.ReadFile(b.path())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, p []byte) {
		d := openDir(t, t.TempDir(), 1<<30)
		if err := os.WriteFile(filepath.Join(d.staged, filepath.Base(b.path())), p, 0o600); err != nil {
			t.Fatal(err)
		}
		b := openBlob(t, d, x, true)
		defer b.Close()
		codec := chunk.NewCodec()
		for n := range x.raw {
			if !b.Have(n) {
				continue
			}
			enc, _, r, err := b.Frame(n)
			if err != nil {
				t.Fatal(err)
			}
			pay, err := io.ReadAll(r)
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			if raw, err := codec.Decode(nil, enc, pay, len(x.raw[n])); err != nil || !bytes.Equal(raw, x.raw[n]) {
				t.Fatalf("believed frame %d, which is another: %v", n, err)
			}
		}
	})
}

func BenchmarkPut(b *testing.B) {
	f := newFixture(b, "bench")
	d := openDir(b, b.TempDir(), 0)
	b.SetBytes(int64(len(f.pays[0])))
	b.ReportAllocs()
	for b.Loop() {
		x := openBlob(b, d, f, true)
		f.put(b, x, 0)
		x.Finish() // without a cache it drops them
		x.Close()
	}
}

// TestFetchedAgain: what the cache has of a blob that the content store lost is
// staging again, out of reach of the cache's bound.
func TestFetchedAgain(t *testing.T) {
	t.Parallel()
	dir, f := t.TempDir(), newFixture(t, "again")
	d := openDir(t, dir, 1<<30)
	b := openBlob(t, d, f, true)
	f.put(t, b, 0)
	f.put(t, b, 1)
	b.Finish()
	if len(d.files(d.staged)) != 0 || len(d.files(d.cached)) != 1 || d.used.Bytes != b.end {
		t.Fatalf("finished, and %d staged, %d cached, %d bytes counted", len(d.files(d.staged)), len(d.files(d.cached)), d.used.Bytes)
	}
	again := openBlob(t, d, f, true)
	f.put(t, again, 2)
	if len(d.files(d.staged)) != 1 || len(d.files(d.cached)) != 0 || d.used.Bytes != 0 {
		t.Errorf("fetched again, and %d staged, %d cached, %d bytes counted", len(d.files(d.staged)), len(d.files(d.cached)), d.used.Bytes)
	}
	b = openBlob(t, openDir(t, dir, 0), f, true) // killed, and started with no cache at all
	for n := range f.raw {
		f.check(t, b, n)
	}
}
