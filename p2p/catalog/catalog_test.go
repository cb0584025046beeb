package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"seeder/p2p/trust"
)

func newIdentity(t testing.TB) *trust.Identity {
	t.Helper()
	id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func announcement(ref string, version uint64, content string) Announcement {
	return Announcement{
		Reference: ref, Version: version, NodeName: "n1", ImageBytes: 10, AnnouncedAt: time.Unix(1000, 0),
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(content), Size: 5},
		Seed:   Seed{Digest: digest.FromString("seed of " + content), Size: 7},
	}
}

func sign(t testing.TB, id *trust.Identity, a Announcement) Record {
	t.Helper()
	r, err := Sign(id, a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB, cfg Config) *Catalog {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "catalog.db")
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	r := sign(t, id, announcement("docker.io/library/a:1", 3, "x"))
	got, err := Decode(r.Encode())
	if err != nil || got.Announcement().Version != 3 || got.AnnouncedBy() != id.ID() || got.Hash() != r.Hash() {
		t.Fatalf("got %+v %v", got, err)
	}
	enc := r.Encode()
	for i := range enc { // no bit of it may change
		bad := bytes.Clone(enc)
		bad[i] ^= 1
		if _, err := Decode(bad); err == nil {
			t.Fatalf("a record with byte %d changed decodes", i)
		}
	}
	for _, bad := range [][]byte{nil, enc[:len(enc)-1], append(bytes.Clone(enc), 0), make([]byte, MaxRecordBytes+1)} {
		if _, err := Decode(bad); err == nil {
			t.Errorf("%d bytes decode", len(bad))
		}
	}
}

func TestSignRefusesWhatDecodeWould(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Announcement){
		"no reference":  func(a *Announcement) { a.Reference = "" },
		"control chars": func(a *Announcement) { a.Reference = "a\x1b[2Jb" },
		"version 0":     func(a *Announcement) { a.Version = 0 },
		"bad digest":    func(a *Announcement) { a.Target.Digest = "sha256:abc" },
		"huge seed":     func(a *Announcement) { a.Seed.Size = 1 << 40 },
		"purge alone":   func(a *Announcement) { a.Purge = true },
		"long name":     func(a *Announcement) { a.NodeName = strings.Repeat("x", 200) },
	} {
		a := announcement("docker.io/library/a:1", 1, "x")
		change(&a)
		if _, err := Sign(newIdentity(t), a); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// TestMergeConverges: any order, duplication and loss, with withdrawals that are
// buried at any moment in between, and then exchanges of differences, end in equal
// catalogs that hold of each reference the record that wins over all others
// (invariant 5).
func TestMergeConverges(t *testing.T) {
	t.Parallel()
	ids := []*trust.Identity{newIdentity(t), newIdentity(t)}
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		records := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) Record { return anyRecord(rt, ids) }), 1, 12).Draw(rt, "records")
		var cats []*Catalog
		for i := range 3 {
			c, err := Open(Config{Path: filepath.Join(dir, fmt.Sprintf("%d-%d.db", n, i))})
			if err != nil {
				rt.Fatal(err)
			}
			defer c.Close()
			cats = append(cats, c)
			for _, r := range rapid.Permutation(records).Draw(rt, "order") {
				if i == 0 || rapid.Bool().Draw(rt, "arrives") { // everything arrives somewhere
					for range rapid.IntRange(1, 2).Draw(rt, "times") {
						merge(rt, c, r)
					}
				}
				if rapid.IntRange(0, 3).Draw(rt, "time passes") == 0 {
					expire(rt, c)
				}
			}
		}
		for range 2 {
			for _, a := range cats {
				for _, b := range cats {
					merge(rt, a, diff(rt, b, a.Buckets())...)
				}
			}
		}
		for _, c := range cats {
			expire(rt, c)
		}
		newest := map[string]Record{}
		for _, r := range records {
			if old, ok := newest[r.ann.Reference]; !ok || Newer(r, old) {
				newest[r.ann.Reference] = r
			}
		}
		for i, c := range cats {
			if c.Buckets() != cats[0].Buckets() || c.Hash() != cats[0].Hash() || len(c.All()) != len(cats[0].All()) {
				rt.Fatalf("catalogs differ: %d and %d records", len(c.All()), len(cats[0].All()))
			}
			for ref, r := range newest {
				got, ok := c.Get(ref)
				if gone := c.arrivals.outlived(r, time.Now(), c.cfg.TombstoneTTL); ok == gone || ok && got.Hash() != r.Hash() {
					rt.Fatalf("catalog %d has %+v of %s, want %+v (gone: %v)", i, got.ann, ref, r.ann, gone)
				}
				if c.NextVersion(ref) <= r.ann.Version && i == 0 {
					rt.Fatalf("the next version of %s is %d, it had %d", ref, c.NextVersion(ref), r.ann.Version)
				}
			}
		}
	})
}

// anyRecord is of one of few references, versions and moments, so that many collide.
func anyRecord(rt *rapid.T, ids []*trust.Identity) Record {
	a := announcement(fmt.Sprintf("docker.io/library/r%d:1", rapid.IntRange(0, 3).Draw(rt, "ref")),
		rapid.Uint64Range(1, 3).Draw(rt, "version"), rapid.StringMatching("[ab]").Draw(rt, "content"))
	a.AnnouncedAt = time.Unix(rapid.Int64Range(0, 2).Draw(rt, "time"), 0)
	if rapid.Bool().Draw(rt, "lately") {
		a.AnnouncedAt = time.Now().Add(-time.Minute)
	}
	a.Withdrawn = rapid.Bool().Draw(rt, "withdrawn")
	r, err := Sign(ids[rapid.IntRange(0, 1).Draw(rt, "id")], a)
	if err != nil {
		rt.Fatal(err)
	}
	return r
}

func merge(t interface{ Fatal(...any) }, c *Catalog, records ...Record) {
	if _, err := c.Merge(records...); err != nil {
		t.Fatal(err)
	}
}

// expire lets a host have done all there is to do, and then its time pass.
func expire(t interface{ Fatal(...any) }, c *Catalog) {
	for _, r := range c.All() {
		if err := c.SetReached(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Expire(time.Now()); err != nil {
		t.Fatal(err)
	}
}

func TestNewerIsATotalOrder(t *testing.T) {
	t.Parallel()
	a, b := newIdentity(t), newIdentity(t)
	x := sign(t, a, announcement("docker.io/library/a:1", 2, "x"))
	later := announcement("docker.io/library/a:1", 1, "y")
	later.AnnouncedAt = time.Now().Add(24 * time.Hour) // a clock that is a day ahead
	if y := sign(t, b, later); Newer(y, x) || !Newer(x, y) {
		t.Error("a clock decided over a version")
	}
	if y := sign(t, b, announcement("docker.io/library/a:1", 2, "x")); Newer(x, y) == Newer(y, x) {
		t.Error("two records of one version and time have no order")
	}
	if Newer(x, x) {
		t.Error("a record is newer than itself")
	}
}

func TestSurvivesReopen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "catalog.db")
	id := newIdentity(t)
	c, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Merge(sign(t, id, announcement("docker.io/library/a:1", 1, "x"))); err != nil {
		t.Fatal(err)
	}
	want := c.Hash()
	rec, _ := c.Get("docker.io/library/a:1")
	if c.Reached(rec) {
		t.Error("reached before it was said")
	}
	if err := c.SetReached(rec); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = Open(Config{Path: path})
	if err != nil || c.Hash() != want {
		t.Fatalf("after reopening: hash %x %v, want %x", c.Hash(), err, want)
	}
	next := sign(t, id, announcement("docker.io/library/a:1", 2, "x"))
	if !c.Reached(rec) || c.Reached(next) {
		t.Errorf("after reopening: reached %v, the next version %v", c.Reached(rec), c.Reached(next))
	}
	withdrawal := func(version uint64) Record {
		a := announcement("docker.io/library/a:1", version, "x")
		a.Withdrawn = true
		return sign(t, id, a)
	}
	if err := c.SetReached(next); err != nil || !c.Reached(withdrawal(1)) || c.Reached(withdrawal(2)) || c.Reached(rec) {
		t.Errorf("at version 2, %v: reached the withdrawals 1 %v and 2 %v", err, c.Reached(withdrawal(1)), c.Reached(withdrawal(2)))
	}
	err = c.file.db.Update(func(tx *bolt.Tx) error { // a file that says no version
		b := tx.Bucket(reachedBucket)
		v := b.Get([]byte("docker.io/library/a:1"))
		return b.Put([]byte("docker.io/library/a:1"), bytes.Clone(v[:2*sha256.Size]))
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	c = open(t, Config{Path: path})
	if !c.Reached(next) || c.Reached(withdrawal(1)) || c.ReachedTarget("docker.io/library/a:1") != next.ann.Target.Digest {
		t.Errorf("a file without versions: reached %v, an older withdrawal %v", c.Reached(next), c.Reached(withdrawal(1)))
	}
}

// TestOnlyWhatIsNewerChangesAnything: nobody gets anything into a catalog by
// sending what was sent before, or by changing it.
func TestOnlyWhatIsNewerChangesAnything(t *testing.T) {
	t.Parallel()
	id, other := newIdentity(t), newIdentity(t)
	c := open(t, Config{})
	now := sign(t, id, announcement("docker.io/library/a:1", 3, "x"))
	if _, err := c.Merge(now); err != nil {
		t.Fatal(err)
	}
	want := c.Hash()
	gone := announcement("docker.io/library/a:1", 2, "x")
	gone.Withdrawn, gone.Purge = true, true
	earlier := announcement("docker.io/library/a:1", 3, "evil")
	earlier.AnnouncedAt = earlier.AnnouncedAt.Add(-time.Second)
	for name, r := range map[string]Record{
		"again":               now,
		"an older version":    sign(t, id, announcement("docker.io/library/a:1", 2, "old")),
		"an older withdrawal": sign(t, id, gone),
		"an earlier moment":   sign(t, other, earlier),
		"no record":           {},
	} {
		if changed, err := c.Merge(r); err != nil || len(changed) != 0 || c.Hash() != want {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
	}

	enc := now.Encode()
	for n := range enc {
		if _, err := Decode(enc[:n]); err == nil {
			t.Errorf("%d bytes of a record decode", n)
		}
	}
	a := now.Announcement()
	a.Version = 4
	payload, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]Record{
		"another payload":            {payload: payload, public: id.Public(), signature: now.signature},
		"another's signature":        {payload: payload, public: id.Public(), signature: other.Sign(domain, payload)},
		"another's name on it":       {payload: now.payload, public: other.Public(), signature: now.signature},
		"signed for something else":  {payload: payload, public: id.Public(), signature: id.Sign("seeder something else", payload)},
		"signed but out of bounds":   {payload: []byte(`{}`), public: id.Public(), signature: id.Sign(domain, []byte(`{}`))},
		"signed but no announcement": {payload: []byte(`[]`), public: id.Public(), signature: id.Sign(domain, []byte(`[]`))},
	} {
		if _, err := Decode(r.Encode()); err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
}

// TestForgedOnDisk: what somebody writes into the file is checked like what
// somebody sends.
func TestForgedOnDisk(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := open(t, Config{Path: path})
	if _, err := c.Merge(sign(t, id, announcement("docker.io/library/a:1", 1, "x"))); err != nil {
		t.Fatal(err)
	}
	want := c.Hash()
	good := sign(t, id, announcement("docker.io/library/b:1", 1, "x")).Encode()
	forged := bytes.Clone(good)
	forged[len(forged)-20] ^= 1
	err := c.file.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(recordsBucket)
		return errors.Join(b.Put([]byte("docker.io/library/b:1"), forged), b.Put([]byte("docker.io/library/c:1"), good[:90]),
			b.Put([]byte("docker.io/library/d:1"), good)) // under another name
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c = open(t, Config{Path: path, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if c.Hash() != want || len(c.All()) != 1 {
		t.Errorf("%d records were believed, want the one", len(c.All()))
	}
	if got := strings.Count(log.String(), "level=ERROR"); got != 3 {
		t.Errorf("%d records were reported: %s", got, log.String())
	}
}

func TestOnlyAllowedAnnouncers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "catalog.db")
	good, bad := newIdentity(t), newIdentity(t)
	c := open(t, Config{Path: path})
	records := []Record{
		sign(t, good, announcement("docker.io/library/a:1", 1, "x")),
		sign(t, bad, announcement("docker.io/library/b:1", 1, "x")),
	}
	if _, err := c.Merge(records...); err != nil {
		t.Fatal(err)
	}
	c.Close()
	var log bytes.Buffer
	c = open(t, Config{Path: path, Allow: func(id trust.NodeID) bool { return id == good.ID() }, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if len(c.All()) != 1 {
		t.Fatalf("%d records were loaded, want the allowed one", len(c.All()))
	}
	log.Reset()
	newer := sign(t, bad, announcement("docker.io/library/a:1", 9, "evil"))
	for range 3 {
		if changed, err := c.Merge(newer); err != nil || len(changed) != 0 {
			t.Fatalf("a record of another announcer was taken: %v %v", changed, err)
		}
	}
	if got := strings.Count(log.String(), string(bad.ID())); got != 1 {
		t.Errorf("the log names the announcer %d times, want once: %s", got, log.String())
	}
}

func TestTombstonesExpireAndCatalogIsBounded(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := open(t, Config{Path: path, TombstoneTTL: time.Hour, MaxBytes: 6 * recordCost})
	gone := announcement("docker.io/library/gone:1", 5, "x")
	gone.Withdrawn, gone.AnnouncedAt = true, time.Now()
	kept := announcement("docker.io/library/kept:1", 1, "x")
	merge(t, c, sign(t, id, gone), sign(t, id, kept), sign(t, id, announcement("docker.io/library/third:1", 1, "x")),
		sign(t, id, announcement("docker.io/library/fourth:1", 1, "x")), sign(t, id, announcement("docker.io/library/fifth:1", 1, "x")))
	if n := len(c.All()); n != 4 {
		t.Fatalf("%d records, want the withdrawal and the bound of 3 of one announcer", n)
	}
	late := gone.AnnouncedAt.Add(2 * time.Hour)
	there := func(ref string) bool { _, ok := c.Get(ref); return ok }
	for _, step := range []struct {
		what   string
		at     time.Time
		before func()
		there  bool
	}{
		{"before its time", gone.AnnouncedAt.Add(30 * time.Minute), func() {}, true},
		{"before this host has done as it says", late, func() {}, true},
		{"in its time", late, func() {
			if err := c.SetReached(sign(t, id, gone)); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		step.before()
		if err := c.Expire(step.at); err != nil {
			t.Fatal(err)
		}
		if there(gone.Reference) != step.there || !there(kept.Reference) {
			t.Fatalf("%s: the tombstone is there: %v, the announcement: %v", step.what, there(gone.Reference), there(kept.Reference))
		}
	}

	c.Close()
	c = open(t, Config{Path: path, TombstoneTTL: time.Hour, MaxBytes: 6 * recordCost})
	before := announcement(gone.Reference, 4, "x")
	if merge(t, c, sign(t, id, before)); there(gone.Reference) || c.NextVersion(gone.Reference) != 6 {
		t.Fatalf("the announcement from before is back: %v; the next version is %d, want 6", there(gone.Reference), c.NextVersion(gone.Reference))
	}
	var remote Buckets
	remote[bucketOf(gone.Reference)] = 1
	var told bool
	for _, r := range diff(t, c, remote) {
		told = told || r.Announcement().Reference == gone.Reference && r.Announcement().Withdrawn
	}
	if !told {
		t.Fatal("a host that differs is not told of the withdrawal")
	}

	for i := range 5 { // from others, of what is not known here
		old := announcement(fmt.Sprintf("docker.io/library/old:%d", i), 1, "x")
		old.Withdrawn = true
		merge(t, c, sign(t, newIdentity(t), old))
	}
	if n := len(c.buried); n != 2 {
		t.Fatalf("%d withdrawals, want the bound of 2", n)
	}
	for i := range 3 { // of what is known here
		r := announcement(fmt.Sprintf("docker.io/library/known:%d", i), 1, "x")
		merge(t, c, sign(t, newIdentity(t), r))
		r.Version, r.Withdrawn, r.AnnouncedAt = 2, true, late
		merge(t, c, sign(t, id, r))
	}
	if err := c.Expire(late); err != nil {
		t.Fatal(err)
	}
	withdrawn := 0
	for _, r := range c.All() {
		if r.ann.Withdrawn {
			withdrawn++
		}
	}
	if withdrawn+len(c.buried) != 2 {
		t.Fatalf("%d withdrawals and %d buried, want the bound of 2", withdrawn, len(c.buried))
	}
	want := c.Hash()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c = open(t, Config{Path: path, TombstoneTTL: time.Hour, MaxBytes: 6 * recordCost}); c.Hash() != want {
		t.Fatal("after reopening another catalog")
	}
}

// diff is what c tells a node whose summary is remote.
func diff(t interface{ Fatal(...any) }, c *Catalog, remote Buckets) (out []Record) {
	for _, enc := range c.Diff(remote, 1<<30) {
		r, err := Decode(enc)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestSecondProcessIsTold(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "catalog.db")
	open(t, Config{Path: path})
	if _, err := Open(Config{Path: path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want an error that names %s", err, path)
	}
}

func FuzzDecode(f *testing.F) {
	id := newIdentity(f)
	f.Add(sign(f, id, announcement("docker.io/library/a:1", 1, "x")).Encode())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err == nil && !bytes.Equal(r.Encode(), b) {
			t.Fatal("decodes, but encodes to other bytes")
		}
	})
}

func FuzzDecodeBuckets(f *testing.F) {
	f.Add(Buckets{1, 2}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := DecodeBuckets(b)
		if err == nil && !bytes.Equal(x.Encode(), b) {
			t.Fatal("decodes, but encodes to other bytes")
		}
	})
}

// FuzzDecodeSigned is what a member may send: anything at all, well signed.
func FuzzDecodeSigned(f *testing.F) {
	id := newIdentity(f)
	f.Add(sign(f, id, announcement("docker.io/library/a:1", 1, "x")).payload)
	f.Add([]byte(`{"ref":"a","version":18446744073709551615,"at":"9999-12-31T23:59:59.999Z","unknown":[1]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r := Record{payload: payload, public: id.Public(), signature: id.Sign(domain, payload)}
		got, err := Decode(r.Encode())
		if err != nil {
			return
		}
		a := got.Announcement()
		if err := a.validate(); err != nil {
			t.Fatalf("accepted %+v: %v", a, err)
		}
		if !bytes.Equal(got.Encode(), r.Encode()) || Newer(got, got) {
			t.Fatalf("%s is not passed on as it came", payload)
		}
		if a.AnnouncedAt = a.AnnouncedAt.UTC().Truncate(time.Millisecond); a.AnnouncedAt.Year() < 0 || a.AnnouncedAt.Year() > 9999 {
			return // UTC may be in another year, which JSON cannot say
		}
		again, err := Sign(id, a)
		if err != nil {
			return // escapes may make it longer
		}
		back, err := Decode(again.Encode())
		if b := back.Announcement(); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v becomes %+v %v", a, b, err)
		}
	})
}
